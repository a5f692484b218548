#include <cmath>

#include "engine/ops/elementwise/scaled_add.h"
#include "engine/ops/optim/adamw.h"
#include "engine/optim/adamw.h"
#include "tests/support/test.h"

namespace pm::test {
namespace {

std::vector<ParameterGroup> two_groups(Context& ctx, DType dtype) {
  return {{{{"weight", on(ctx, normal(1, {5, 3}, 1.0, DType::f32), dtype)}}, 1.0, 0.1},
          {{{"bias", on(ctx, normal(2, {5}, 1.0, DType::f32), dtype)}}, 0.5, 0.0}};
}

void set_grads(Context& ctx, AdamW& optimizer, DType dtype, uint64_t seed) {
  for (OptimParameter& parameter : optimizer.parameters()) {
    parameter.grad = on(ctx, normal(seed++, parameter.value.shape(), 0.1, DType::f32), dtype);
  }
}

AdamW trained(Context& ctx, DType dtype, int steps) {
  AdamW optimizer(ctx, two_groups(ctx, dtype));
  for (int i = 0; i < steps; ++i) {
    set_grads(ctx, optimizer, dtype, static_cast<uint64_t>(100 + 10 * i));
    optimizer.set_learning_rate(ctx, 0.01);
    optimizer.step(ctx);
  }
  return optimizer;
}

}  // namespace

TEST_CASE("optimizer on cuda equals cpu double", "[cuda]") {
  const AdamW actual = trained(cuda(), DType::f32, 4), expected = trained(cpu(), DType::f64, 4);
  for (size_t i = 0; i < expected.parameters().size(); ++i) {
    check_close(actual.parameters()[i].value, expected.parameters()[i].value, tolerance(DType::f32));
  }
}

TEST_CASE("optimizer gives every group its rate and decay", "[cpu]") {
  const AdamW optimizer = trained(cpu(), DType::f64, 2);
  std::vector<AdamWTensor> bias{{normal(2, {5}, 1.0, DType::f32), Tensor(), Tensor::zeros(cpu(), {5}, DType::f64),
                                 Tensor::zeros(cpu(), {5}, DType::f64)}};
  Tensor clock = ops::adamw_clock(cpu());
  ops::set_learning_rate(cpu(), clock, 0.005);
  for (const uint64_t seed : {101, 111}) {
    bias[0].grad = normal(seed, {5}, 0.1, DType::f32);
    ops::adamw_step(cpu(), bias, clock, {});
  }
  CHECK(optimizer.steps() == 2);
  check_close(optimizer.parameters()[1].value, bias[0].param, tolerance(DType::f64), "value");
  check_close(optimizer.parameters()[1].exp_avg, bias[0].exp_avg, tolerance(DType::f64), "exp_avg");
  CHECK(relative_error(optimizer.parameters()[0].value, normal(1, {5, 3}, 1.0, DType::f32)) > 1e-4);
}

TEST_CASE("optimizer resumed from its state continues as if never stopped", "[cpu]") {
  AdamW whole = trained(cpu(), DType::f64, 2), resumed(cpu(), two_groups(cpu(), DType::f64));
  for (size_t i = 0; i < whole.parameters().size(); ++i) {
    const OptimParameter& saved = whole.parameters()[i];
    OptimParameter& restored = resumed.parameter(saved.name);
    restored.value = saved.value.copy_to(cpu());
    restored.exp_avg = saved.exp_avg.copy_to(cpu());
    restored.exp_avg_sq = saved.exp_avg_sq.copy_to(cpu());
  }
  resumed.set_steps(whole.steps());
  for (AdamW* optimizer : {&whole, &resumed}) {
    set_grads(cpu(), *optimizer, DType::f64, 500);
    optimizer->set_learning_rate(cpu(), 0.01);
    optimizer->step(cpu());
  }
  check_same_bits(whole.parameters()[0].value, resumed.parameters()[0].value);
  check_same_bits(whole.parameters()[1].value, resumed.parameters()[1].value);
}

TEST_CASE("optimizer leaves parameters without a gradient alone", "[cpu]") {
  AdamW optimizer(cpu(), two_groups(cpu(), DType::f64));
  const Tensor before = optimizer.parameter("weight").value.copy_to(cpu());
  optimizer.parameter("bias").grad = normal(3, {5});
  optimizer.set_learning_rate(cpu(), 0.1);
  optimizer.step(cpu());
  check_same_bits(optimizer.parameter("weight").value, before);
  CHECK_FALSE(optimizer.parameter("bias").grad.defined());
  CHECK_FALSE(optimizer.step(cpu()).defined());
  CHECK(optimizer.steps() == 2);
}

TEST_CASE("optimizer finds the minimum of a bowl", "[cpu]") {
  Tensor point = normal(1, {6}, 2.0);
  AdamW optimizer(cpu(), {{{{"point", point}}}});
  for (int i = 0; i < 600; ++i) {
    optimizer.parameters()[0].grad = point.copy_to(cpu());  // gradient of |p|^2 / 2
    optimizer.set_learning_rate(cpu(), 0.05);
    optimizer.step(cpu(), {1.0, 1.0});
  }
  check_close(point, Tensor::zeros(cpu(), {6}, DType::f64), 1e-2);
}

TEST_CASE("optimizer scales, measures and shortens the gradients", "[cpu]") {
  const auto run = [](double factor, const GradientScaling& scaling, double* norm) {
    AdamW optimizer(cpu(), two_groups(cpu(), DType::f64),
                    {0.9, 0.999, 1.0});  // a large eps: the step follows the length
    set_grads(cpu(), optimizer, DType::f64, 40);
    for (OptimParameter& parameter : optimizer.parameters()) ops::scale_in_place(cpu(), parameter.grad, factor);
    optimizer.set_learning_rate(cpu(), 0.1);
    *norm = optimizer.step(cpu(), scaling).to_host<double>()[0];
    return optimizer.parameters()[0].value;
  };
  double plain = 0.0, scaled = 0.0, shortened = 0.0;
  const Tensor expected = run(0.25, {}, &plain);
  check_close(run(1.0, {0.25, 0.0}, &scaled), expected, tolerance(DType::f64));
  CHECK(std::abs(scaled - plain) < 1e-12);
  check_close(run(8.0, {0.25, plain}, &shortened), expected, 1e-5);  // 1e-6 in the factor's denominator
  CHECK(std::abs(shortened - 8.0 * plain) < 1e-12);
}

TEST_CASE("optimizer names what does not match", "[cpu]") {
  AdamW optimizer(cpu(), two_groups(cpu(), DType::f64));
  CHECK_THROWS_AS(optimizer.parameter("other"), ConfigError);
  CHECK_THROWS_AS(optimizer.set_steps(-1), ConfigError);
  optimizer.parameter("bias").grad = normal(3, {4});
  CHECK_THROWS_AS(optimizer.step(cpu()), ShapeError);
  CHECK(optimizer.steps() == 0);
  const Tensor one = normal(1, {2});
  CHECK_THROWS_AS(AdamW(cpu(), {{{{"same", one}, {"same", one}}}}), ConfigError);
  CHECK_THROWS_AS(AdamW(cpu(), {{{{"one", one}}}}, {1.0, 0.999, 1e-8}), ConfigError);
  CHECK_THROWS_AS(AdamW(cpu(), {{{{"narrow", on(cpu(), one, DType::bf16)}}}}), DTypeError);
}

}  // namespace pm::test
