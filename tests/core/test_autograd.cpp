#include <cmath>
#include <stdexcept>

#include "autograd/core/recompute.h"
#include "autograd/core/variable.h"
#include "autograd/ops/linear.h"
#include "autograd/ops/scaled_add.h"
#include "engine/ops/backends.h"
#include "tests/support/test.h"

namespace pm::test {
namespace {

Tensor numbers(const std::vector<double>& values) {
  return Tensor::from_host(cpu(), {static_cast<int64_t>(values.size())}, values);
}

std::vector<double> grad_of(const Variable& leaf) { return leaf.grad().to_host<double>(); }

int64_t live() { return *cpu().live_nodes(); }

// x times a random mask of 0 and 2 from the context's random stream, as dropout does.
Variable random_mask(Context& ctx, const Variable& x) {
  const RngState draw = ctx.rng().next();
  const auto masked = [draw](const Tensor& values) {
    std::vector<double> host = values.to_host<double>();
    for (size_t i = 0; i < host.size(); ++i) host[i] *= uniform_at(draw, static_cast<int64_t>(i)) < 0.5 ? 0.0 : 2.0;
    return Tensor::from_host(cpu(), values.shape(), host);
  };
  return record(ctx, "random_mask", masked(x.value()), {x},
                [masked](Context&, const Tensor& dout, GradSink& grads) { grads.add(0, masked(dout)); });
}

// Passes values on; its closure throws.
Variable broken(Context& ctx, const Variable& x) {
  return record(ctx, "broken", x.value(), {x},
                [](Context&, const Tensor&, GradSink&) { throw std::runtime_error("broken closure"); });
}

}  // namespace

TEST_CASE("gradients accumulate over calls until cleared", "[cpu]") {
  Variable x(numbers({1, 2}), true);
  for (int call = 1; call <= 3; ++call) {
    backward(cpu(), scaled_add(cpu(), x, 2.0, x, 0.5), numbers({1, 10}));
    CHECK(grad_of(x) == std::vector<double>{2.5 * call, 25.0 * call});
  }
  x.clear_grad();
  CHECK_FALSE(x.grad().defined());
  CHECK(live() == 0);
}

TEST_CASE("a diamond sums both of its sides", "[cpu]") {
  Variable x(numbers({1, 2, 3}), true);
  const Variable a = scaled_add(cpu(), x, 2.0, x, 0.0), b = scaled_add(cpu(), a, 3.0, a, 0.0);
  const Variable c = scaled_add(cpu(), a, 5.0, b, 7.0);  // a directly and through b
  backward(cpu(), add(cpu(), c, a), numbers({1, 1, -1}));
  const double expected = 2.0 * (5.0 + 3.0 * 7.0 + 1.0);
  CHECK(grad_of(x) == std::vector<double>{expected, expected, -expected});
}

TEST_CASE("leaves do not share their gradients", "[cpu]") {
  Variable a(numbers({1}), true), b(numbers({2}), true);
  const Tensor dout = numbers({1});
  backward(cpu(), add(cpu(), a, b), dout);
  backward(cpu(), scaled_add(cpu(), a, 10.0, a, 0.0), dout);
  CHECK(grad_of(a) == std::vector<double>{11});
  CHECK(grad_of(b) == std::vector<double>{1});
  CHECK(dout.to_host<double>() == std::vector<double>{1});
}

TEST_CASE("a leaf is its own gradient", "[cpu]") {
  Variable x(numbers({4}), true);
  backward(cpu(), x);
  CHECK(grad_of(x) == std::vector<double>{1});
}

TEST_CASE("only what is wanted is recorded", "[cpu]") {
  const Variable plain(numbers({1})), wanted(numbers({2}), true);
  CHECK_FALSE(add(cpu(), plain, plain).requires_grad());
  CHECK(add(cpu(), plain, wanted).requires_grad());
  {
    NoGrad no_grad(cpu());
    CHECK_FALSE(cpu().grad_enabled());
    { NoGrad nested(cpu()); }
    const Variable quiet = add(cpu(), wanted, wanted);
    CHECK_FALSE(quiet.requires_grad());
    CHECK(live() == 0);
    CHECK_THROWS_AS(backward(cpu(), quiet), Error);
  }
  CHECK(cpu().grad_enabled());
  CHECK_THROWS_AS(plain.grad(), Error);
  CHECK_THROWS_AS(add(cpu(), wanted, wanted).grad(), Error);
}

TEST_CASE("an output that nobody used gets a gradient of zeros", "[cpu]") {
  Variable x(numbers({1, 2}), true);
  bool seen = false;
  std::vector<Tensor> outs{numbers({1}), numbers({2, 3})};
  const std::vector<Variable> pair =
      record_many(cpu(), "pair", outs, {x}, [&seen](Context&, const std::vector<Tensor>& douts, GradSink& grads) {
        seen = douts.size() == 2 && douts[1].to_host<double>() == std::vector<double>{0, 0};
        grads.add(0, numbers({5, 6}));
      });
  backward(cpu(), pair[0]);
  CHECK(seen);
  CHECK(grad_of(x) == std::vector<double>{5, 6});
}

TEST_CASE("a consumed graph is refused", "[cpu]") {
  Variable x(numbers({1}), true);
  const Variable y = add(cpu(), x, x);
  backward(cpu(), y);
  CHECK_THROWS_AS(backward(cpu(), y), Error);
  CHECK(grad_of(x) == std::vector<double>{2});
}

TEST_CASE("the gradient passed to backward must fit", "[cpu]") {
  const Variable x(numbers({1, 2}), true);
  CHECK_THROWS_AS(backward(cpu(), add(cpu(), x, x)), ShapeError);
  CHECK_THROWS_AS(backward(cpu(), add(cpu(), x, x), numbers({1})), ShapeError);
}

TEST_CASE("nodes die with their variables", "[cpu]") {
  Variable x(numbers({1}), true);
  {
    const Variable a = add(cpu(), x, x), b = add(cpu(), a, x);
    CHECK(live() == 2);
  }
  CHECK(live() == 0);
  {
    const Variable a = add(cpu(), add(cpu(), x, x), x);
    CHECK(live() == 2);
    backward(cpu(), a);
  }
  CHECK(live() == 0);
}

TEST_CASE("backward lets go of saved tensors", "[cpu]") {
  Context ctx(make_backend(Device::cpu()));
  const auto leaf = [&ctx](const Shape& shape) { return Variable(Tensor::zeros(ctx, shape, DType::f64), true); };
  Variable x = leaf({4, 3}), weight = leaf({2, 3});
  const int64_t before = ctx.backend().memory().allocations;
  {
    const Variable y = linear(ctx, x, weight);
    backward(ctx, y, Tensor::zeros(ctx, {4, 2}, DType::f64));
    CHECK(ctx.backend().memory().allocations == before + 3);  // y and two gradients
  }
  x.clear_grad();
  weight.clear_grad();
  CHECK(ctx.backend().memory().allocations == before);
}

TEST_CASE("a failing closure leaves nothing behind", "[cpu]") {
  Variable x(numbers({1}), true);
  {
    const Variable y = add(cpu(), broken(cpu(), add(cpu(), x, x)), x);
    CHECK_THROWS_AS(backward(cpu(), y), std::runtime_error);
    CHECK(cpu().grad_enabled());
  }
  CHECK(live() == 0);
  x.clear_grad();
  backward(cpu(), add(cpu(), x, x));
  CHECK(grad_of(x) == std::vector<double>{2});
}

TEST_CASE("recompute equals the plain graph bit for bit", "[cpu]") {
  Variable x(normal(1, {6, 5}), true), weight(normal(2, {4, 5}), true);  // weight is captured, not passed
  const Tensor dout = normal(3, {6, 4});
  const RecomputeFn fn = [&weight](Context& c, const std::vector<Variable>& v) {
    return random_mask(c, linear(c, random_mask(c, v[0]), weight));
  };
  const RngState start = cpu().rng().state();

  const Variable plain = fn(cpu(), {x});
  const RngState after = cpu().rng().state();
  backward(cpu(), plain, dout);
  const Tensor dx = x.grad(), dweight = weight.grad();
  x.clear_grad();
  weight.clear_grad();

  cpu().rng().set_state(start);
  const Variable again = recompute(cpu(), fn, {x});
  CHECK(live() == 3 + 1);  // the three of the plain graph still held, and one for the whole scope
  CHECK(cpu().rng().state() == after);
  cpu().rng().next();  // what follows the scope draws too
  const RngState later = cpu().rng().state();
  backward(cpu(), again, dout);
  CHECK(cpu().rng().state() == later);
  CHECK(cpu().grad_enabled());
  check_same_bits(again.value(), plain.value(), "value");
  check_same_bits(x.grad(), dx, "dx");
  check_same_bits(weight.grad(), dweight, "dweight");
}

TEST_CASE("recompute nests and leaves no node behind", "[cpu]") {
  Variable x(normal(1, {3, 4}), true), weight(normal(2, {4, 4}), true);
  const RecomputeFn inner = [&weight](Context& c, const std::vector<Variable>& v) { return linear(c, v[0], weight); };
  const RecomputeFn outer = [&inner](Context& c, const std::vector<Variable>& v) {
    return recompute(c, inner, {recompute(c, inner, v)});
  };
  backward(cpu(), outer(cpu(), {x}), normal(3, {3, 4}));
  const Tensor dx = x.grad(), dweight = weight.grad();
  x.clear_grad();
  weight.clear_grad();
  backward(cpu(), recompute(cpu(), outer, {x}), normal(3, {3, 4}));
  check_same_bits(x.grad(), dx);
  check_same_bits(weight.grad(), dweight);
  CHECK(live() == 0);
}

TEST_CASE("recompute without gradients is a plain call", "[cpu]") {
  NoGrad no_grad(cpu());
  Variable x(numbers({3}), true);
  const Variable y =
      recompute(cpu(), [](Context& c, const std::vector<Variable>& v) { return add(c, v[0], v[0]); }, {x});
  CHECK_FALSE(y.requires_grad());
  CHECK(y.value().to_host<double>() == std::vector<double>{6});
}

TEST_CASE("recompute passes no gradient to an input that wants none", "[cpu]") {
  Variable x(numbers({3})), y(numbers({4}), true);
  backward(cpu(),
           recompute(cpu(), [](Context& c, const std::vector<Variable>& v) { return add(c, v[0], v[1]); }, {x, y}));
  CHECK(grad_of(y) == std::vector<double>{1});
  CHECK(live() == 0);
}

}  // namespace pm::test
