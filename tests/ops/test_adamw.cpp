#include <algorithm>
#include <cmath>
#include <limits>

#include "engine/ops/optim/adamw.h"
#include "tests/support/golden.h"
#include "tests/support/test.h"

namespace pm::test {
namespace {

// `count` tensors of ragged sizes around `n` at zero state, with rates and decays of their own.
struct Optimised {
  std::vector<AdamWTensor> tensors;
  Tensor clock;

  Optimised(Context& ctx, DType dtype, int64_t n, int64_t count) : clock(ops::adamw_clock(ctx)) {
    for (int64_t i = 0; i < count; ++i) {
      const Shape shape{std::max<int64_t>(0, n - 3 * (i % 5))};
      tensors.push_back({on(ctx, normal(static_cast<uint64_t>(i), shape, 1.0, DType::f32), dtype), Tensor(),
                         Tensor::zeros(ctx, shape, dtype), Tensor::zeros(ctx, shape, dtype), i % 2 == 0 ? 1.0 : 0.5,
                         i % 3 == 0 ? 0.05 : 0.0});
    }
  }
};

// Three steps on `ctx`, with other gradients and another learning rate each; the first is clipped.
Optimised three_steps(Context& ctx, DType dtype, int64_t n, int64_t count = 1) {
  Optimised state(ctx, dtype, n, count);
  for (uint64_t step = 1; step <= 3; ++step) {
    for (size_t i = 0; i < state.tensors.size(); ++i) {
      state.tensors[i].grad = on(ctx, normal(1000 * step + i, state.tensors[i].param.shape(), 0.1, DType::f32), dtype);
    }
    ops::set_learning_rate(ctx, state.clock, 0.01 / static_cast<double>(step));
    const Tensor norm = Tensor::from_host<double>(cpu(), {1}, {step == 1 ? 3.0 : 1.0});
    ops::adamw_step(ctx, state.tensors, state.clock, {0.9, 0.999, 1e-8, 0.5, 1.5}, on(ctx, norm, dtype));
  }
  return state;
}

void check_equal(const Optimised& actual, const Optimised& expected) {
  REQUIRE(actual.tensors.size() == expected.tensors.size());
  for (size_t i = 0; i < actual.tensors.size(); ++i) {
    check_close(actual.tensors[i].param, expected.tensors[i].param, tolerance(DType::f32), "param");
    check_close(actual.tensors[i].exp_avg, expected.tensors[i].exp_avg, tolerance(DType::f32), "exp_avg");
    check_close(actual.tensors[i].exp_avg_sq, expected.tensors[i].exp_avg_sq, tolerance(DType::f32), "exp_avg_sq");
  }
  check_same_bits(actual.clock, expected.clock, "clock");
}

}  // namespace

TEST_CASE("adamw of a large tensor on cuda equals cpu double", "[cuda][slow]") {
  check_equal(three_steps(cuda(), DType::f32, 9'000'001), three_steps(cpu(), DType::f64, 9'000'001));
}

TEST_CASE("adamw on cuda equals cpu double", "[cuda]") {
  const int64_t n = GENERATE(0, 1, 255, 256, 257, 4095, 4097, 300'001);
  CAPTURE(n);
  const Optimised actual = three_steps(cuda(), DType::f32, n);
  check_equal(actual, three_steps(cpu(), DType::f64, n));
  check_same_bits(actual.tensors[0].param, three_steps(cuda(), DType::f32, n).tensors[0].param);
}

TEST_CASE("adamw over some tensors on cuda equals cpu double", "[cuda]") {
  check_equal(three_steps(cuda(), DType::f32, 40, 7), three_steps(cpu(), DType::f64, 40, 7));
}

TEST_CASE("adamw over many tensors on cuda equals cpu double", "[cuda][slow]") {
  const int64_t count = GENERATE(2, 511, 512, 513, 1030);  // 512 share a launch
  CAPTURE(count);
  check_equal(three_steps(cuda(), DType::f32, 40, count), three_steps(cpu(), DType::f64, 40, count));
}

TEST_CASE("adamw spreads a norm of NaN on cuda", "[cuda]") {
  Optimised state(cuda(), DType::f32, 3, 1);
  state.tensors[0].grad = on(cuda(), normal(1, {3}), DType::f32);
  ops::adamw_step(cuda(), state.tensors, state.clock, {0.9, 0.999, 1e-8, 1.0, 1.0},
                  Tensor::from_host<float>(cuda(), {1}, {std::numeric_limits<float>::quiet_NaN()}));
  CHECK(std::isnan(state.tensors[0].param.to_host<float>()[2]));
}

TEST_CASE("adamw in cpu float equals cpu double", "[cpu]") {
  const int64_t n = GENERATE(0, 1, 1003);
  check_equal(three_steps(cpu(), DType::f32, n, 7), three_steps(cpu(), DType::f64, n, 7));
}

// The update written out for one number, in the order of the paper.
TEST_CASE("adamw follows the paper", "[cpu]") {
  double p = 1.5, m = 0.0, v = 0.0;
  const auto one = [](double value) { return Tensor::from_host<double>(cpu(), {1}, {value}); };
  std::vector<AdamWTensor> tensors{{one(p), Tensor(), one(0.0), one(0.0), 2.0, 0.1}};
  Tensor clock = ops::adamw_clock(cpu());
  for (int64_t step = 1; step <= 20; ++step) {
    const double gradient = std::sin(static_cast<double>(step)), lr = 0.02, wd = 0.1, b1 = 0.8, b2 = 0.95, eps = 1e-3;
    const double norm = step == 7 ? 4.0 : 0.5, g = 3.0 * gradient * (step == 7 ? 1.0 / (4.0 + 1e-6) : 1.0);
    tensors[0].grad = one(gradient);
    ops::set_learning_rate(cpu(), clock, 0.5 * lr);
    ops::adamw_step(cpu(), tensors, clock, {b1, b2, eps, 3.0, 1.0}, one(norm));
    p *= 1.0 - lr * wd;
    m = b1 * m + (1.0 - b1) * g;
    v = b2 * v + (1.0 - b2) * g * g;
    const double m_hat = m / (1.0 - std::pow(b1, step)), v_hat = v / (1.0 - std::pow(b2, step));
    p -= lr * m_hat / (std::sqrt(v_hat) + eps);
    check_close(tensors[0].param, one(p), tolerance(DType::f64));
  }
  CHECK(clock.to_host<double>() == std::vector<double>{0.01, 20.0});
}

TEST_CASE("adamw first step moves by the learning rate against the sign", "[cpu]") {
  std::vector<AdamWTensor> tensors{{Tensor::zeros(cpu(), {3}, DType::f64),
                                    Tensor::from_host<double>(cpu(), {3}, {4.0, -0.5, 0.0}),
                                    Tensor::zeros(cpu(), {3}, DType::f64), Tensor::zeros(cpu(), {3}, DType::f64)}};
  Tensor clock = ops::adamw_clock(cpu());
  ops::set_learning_rate(cpu(), clock, 0.1);
  ops::adamw_step(cpu(), tensors, clock, {});
  check_close(tensors[0].param, Tensor::from_host<double>(cpu(), {3}, {-0.1, 0.1, 0.0}), 1e-7);
}

TEST_CASE("adamw spreads a norm of NaN", "[cpu]") {
  Optimised state(cpu(), DType::f64, 3, 1);
  state.tensors[0].grad = normal(1, {3});
  ops::adamw_step(cpu(), state.tensors, state.clock, {0.9, 0.999, 1e-8, 1.0, 1.0},
                  Tensor::from_host<double>(cpu(), {1}, {std::nan("")}));
  CHECK(std::isnan(state.tensors[0].param.to_host<double>()[2]));
}

TEST_CASE("adamw names what does not match", "[cpu]") {
  const Tensor three = normal(1, {3}), four = normal(4, {4}), narrow = on(cpu(), three, DType::f32);
  Tensor clock = ops::adamw_clock(cpu());
  const auto step = [&](const AdamWTensor& tensor, const AdamWStep& options, const Tensor& norm) {
    std::vector<AdamWTensor> tensors{tensor};
    ops::adamw_step(cpu(), tensors, clock, options, norm);
  };
  CHECK_THROWS_AS(step({three, four, three, three}, {}, {}), ShapeError);
  CHECK_THROWS_AS(step({three, three, four, three}, {}, {}), ShapeError);
  CHECK_THROWS_AS(step({three, three, narrow, three}, {}, {}), DTypeError);
  AdamWStep clipped;
  clipped.max_norm = 1.0;
  CHECK_THROWS_AS(step({three, three, three, three}, clipped, {}), Error);
  CHECK_THROWS_AS(step({three, three, three, three}, clipped, four), ShapeError);
  clipped.max_norm = -1.0;
  CHECK_THROWS_AS(step({three, three, three, three}, clipped, {}), Error);
  CHECK_THROWS_AS(ops::adamw_clock(cpu(), -1), Error);
  Tensor wrong = normal(1, {3});
  CHECK_THROWS_AS(ops::set_learning_rate(cpu(), wrong, 0.1), ShapeError);
  CHECK(clock.to_host<double>()[1] == 0.0);
}

namespace {

void check_adamw_file(Context& ctx, DType dtype) {
  const auto golden = load_golden("adamw_37.safetensors");
  const auto item = [&](const char* name) { return golden_item(golden, name); };
  const Shape shape = golden.at("param").shape();
  std::vector<AdamWTensor> tensors{{on(ctx, golden.at("param"), dtype), Tensor(), Tensor::zeros(ctx, shape, dtype),
                                    Tensor::zeros(ctx, shape, dtype), 1.0, item("weight_decay")}};
  Tensor clock = ops::adamw_clock(ctx);
  ops::set_learning_rate(ctx, clock, item("lr"));
  for (int step = 0; step < 3; ++step) {
    tensors[0].grad = on(ctx, golden.at("grad" + std::to_string(step)), dtype);
    ops::adamw_step(ctx, tensors, clock, {item("beta1"), item("beta2"), item("eps")});
  }
  check_close(tensors[0].param, golden.at("param_out"), tolerance(DType::f32), "param");
  check_close(tensors[0].exp_avg, golden.at("exp_avg"), tolerance(DType::f32), "exp_avg");
  check_close(tensors[0].exp_avg_sq, golden.at("exp_avg_sq"), tolerance(DType::f32), "exp_avg_sq");
}

}  // namespace

TEST_CASE("adamw matches its golden file", "[cpu][golden]") {
  check_adamw_file(cpu(), DType::f64);
  check_adamw_file(cpu(), DType::f32);
}
TEST_CASE("adamw on cuda matches its golden file", "[cuda][golden]") { check_adamw_file(cuda(), DType::f32); }

}  // namespace pm::test
