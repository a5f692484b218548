#include <cmath>

#include "engine/ops/optim/adamw.h"
#include "tests/support/golden.h"
#include "tests/support/test.h"

namespace pm::test {
namespace {

struct Optimised {
  Tensor param, exp_avg, exp_avg_sq;
};

// Three steps from zero state on `ctx`, with another gradient each.
Optimised three_steps(Context& ctx, DType dtype, int64_t n) {
  Optimised state{on(ctx, normal(1, {n}, 1.0, DType::f32), dtype), Tensor::zeros(ctx, {n}, dtype),
                  Tensor::zeros(ctx, {n}, dtype)};
  for (int64_t step = 1; step <= 3; ++step) {
    const Tensor grad = on(ctx, normal(10 + static_cast<uint64_t>(step), {n}, 0.1, DType::f32), dtype);
    ops::adamw_step(ctx, state.param, grad, state.exp_avg, state.exp_avg_sq, {0.01, 0.9, 0.999, 1e-8, 0.05, step});
  }
  return state;
}

}  // namespace

TEST_CASE("adamw on cuda equals cpu double", "[cuda]") {
  const int64_t n = GENERATE(0, 1, 255, 256, 257, 1'000'003);
  CAPTURE(n);
  const Optimised actual = three_steps(cuda(), DType::f32, n), expected = three_steps(cpu(), DType::f64, n);
  check_close(actual.param, expected.param, tolerance(DType::f32), "param");
  check_close(actual.exp_avg, expected.exp_avg, tolerance(DType::f32), "exp_avg");
  check_close(actual.exp_avg_sq, expected.exp_avg_sq, tolerance(DType::f32), "exp_avg_sq");
  check_same_bits(actual.param, three_steps(cuda(), DType::f32, n).param);
}

TEST_CASE("adamw in cpu float equals cpu double", "[cpu]") {
  const int64_t n = GENERATE(0, 1, 1003);
  check_close(three_steps(cpu(), DType::f32, n).param, three_steps(cpu(), DType::f64, n).param, tolerance(DType::f32));
}

// The update written out for one number, in the order of the paper.
TEST_CASE("adamw follows the paper", "[cpu]") {
  double p = 1.5, m = 0.0, v = 0.0;
  Tensor param = Tensor::from_host<double>(cpu(), {1}, {p});
  Tensor exp_avg = Tensor::zeros(cpu(), {1}, DType::f64), exp_avg_sq = Tensor::zeros(cpu(), {1}, DType::f64);
  for (int64_t step = 1; step <= 20; ++step) {
    const double g = std::sin(static_cast<double>(step)), lr = 0.02, wd = 0.1, b1 = 0.8, b2 = 0.95, eps = 1e-3;
    ops::adamw_step(cpu(), param, Tensor::from_host<double>(cpu(), {1}, {g}), exp_avg, exp_avg_sq,
                    {lr, b1, b2, eps, wd, step});
    p *= 1.0 - lr * wd;
    m = b1 * m + (1.0 - b1) * g;
    v = b2 * v + (1.0 - b2) * g * g;
    const double m_hat = m / (1.0 - std::pow(b1, step)), v_hat = v / (1.0 - std::pow(b2, step));
    p -= lr * m_hat / (std::sqrt(v_hat) + eps);
    check_close(param, Tensor::from_host<double>(cpu(), {1}, {p}), tolerance(DType::f64));
  }
}

TEST_CASE("adamw first step moves by the learning rate against the sign", "[cpu]") {
  Tensor param = Tensor::zeros(cpu(), {3}, DType::f64);
  Tensor exp_avg = Tensor::zeros(cpu(), {3}, DType::f64), exp_avg_sq = Tensor::zeros(cpu(), {3}, DType::f64);
  ops::adamw_step(cpu(), param, Tensor::from_host<double>(cpu(), {3}, {4.0, -0.5, 0.0}), exp_avg, exp_avg_sq,
                  {0.1, 0.9, 0.999, 1e-8, 0.0, 1});
  check_close(param, Tensor::from_host<double>(cpu(), {3}, {-0.1, 0.1, 0.0}), 1e-7);
}

TEST_CASE("adamw names what does not match", "[cpu]") {
  Tensor param = normal(1, {3}), exp_avg = normal(2, {3}), exp_avg_sq = normal(3, {3}), four = normal(4, {4});
  Tensor narrow = on(cpu(), param, DType::f32);
  CHECK_THROWS_AS(ops::adamw_step(cpu(), param, four, exp_avg, exp_avg_sq, {}), ShapeError);
  CHECK_THROWS_AS(ops::adamw_step(cpu(), param, param, four, exp_avg_sq, {}), ShapeError);
  CHECK_THROWS_AS(ops::adamw_step(cpu(), param, narrow, exp_avg, exp_avg_sq, {}), DTypeError);
  CHECK_THROWS_AS(ops::adamw_step(cpu(), param, param, exp_avg, exp_avg_sq, {0.1, 0.9, 0.999, 1e-8, 0.0, 0}), Error);
}

namespace {

void check_adamw_file(Context& ctx, DType dtype) {
  const auto golden = load_golden("adamw_37.safetensors");
  const auto item = [&](const char* name) { return golden_item(golden, name); };
  Tensor param = on(ctx, golden.at("param"), dtype);
  Tensor exp_avg = Tensor::zeros(ctx, param.shape(), dtype), exp_avg_sq = Tensor::zeros(ctx, param.shape(), dtype);
  for (int64_t step = 1; step <= 3; ++step) {
    ops::adamw_step(ctx, param, on(ctx, golden.at("grad" + std::to_string(step - 1)), dtype), exp_avg, exp_avg_sq,
                    {item("lr"), item("beta1"), item("beta2"), item("eps"), item("weight_decay"), step});
  }
  check_close(param, golden.at("param_out"), tolerance(DType::f32), "param");
  check_close(exp_avg, golden.at("exp_avg"), tolerance(DType::f32), "exp_avg");
  check_close(exp_avg_sq, golden.at("exp_avg_sq"), tolerance(DType::f32), "exp_avg_sq");
}

}  // namespace

TEST_CASE("adamw matches its golden file", "[cpu][golden]") {
  check_adamw_file(cpu(), DType::f64);
  check_adamw_file(cpu(), DType::f32);
}
TEST_CASE("adamw on cuda matches its golden file", "[cuda][golden]") { check_adamw_file(cuda(), DType::f32); }

}  // namespace pm::test
