#include <cmath>

#include "autograd/ops/cross_entropy.h"
#include "engine/ops/loss/cross_entropy.h"
#include "tests/support/golden.h"
#include "tests/support/test.h"

namespace pm::test {
namespace {

// Rows of positive numbers that sum to one up to rounding.
Tensor probabilities(uint64_t seed, int64_t batch, int64_t classes, DType dtype) {
  std::vector<double> values = uniform(seed, {batch, classes}, 0.0, 1.0).to_host<double>();
  for (int64_t row = 0; row < batch; ++row) {
    double sum = 0.0;
    for (int64_t c = 0; c < classes; ++c) sum += values[row * classes + c];
    for (int64_t c = 0; c < classes; ++c) values[row * classes + c] /= sum;
  }
  return widen(on(cpu(), Tensor::from_host(cpu(), {batch, classes}, values), dtype));
}

Tensor scalar(double value) { return Tensor::from_host(cpu(), {1}, std::vector<double>{value}); }

void check_device(Context& ctx, int64_t batch, int64_t classes, double smoothing) {
  CAPTURE(batch, classes, smoothing);
  const Tensor logits = normal(1, {batch, classes}, 4.0, DType::f32),
               targets = probabilities(2, batch, classes, DType::f32);
  const Tensor device_logits = on(ctx, logits, DType::f32), device_targets = on(ctx, targets, DType::f32);
  check_close(ops::cross_entropy(ctx, device_logits, device_targets, smoothing),
              ops::cross_entropy(cpu(), logits, targets, smoothing), tolerance(DType::f32), "loss");
  // One class has no gradient but rounding: compare it with zero at the scale of the targets.
  const Tensor expected = ops::cross_entropy_grad(cpu(), scalar(1.5), logits, targets, smoothing);
  const Tensor actual =
      ops::cross_entropy_grad(ctx, on(ctx, scalar(1.5), DType::f32), device_logits, device_targets, smoothing);
  if (classes > 1) return check_close(actual, expected, tolerance(DType::f32), "dlogits");
  for (const double value : widen(actual).to_host<double>()) CHECK_FALSE(!(std::abs(value) < 1e-6));
}

}  // namespace

TEST_CASE("cross_entropy on cuda equals cpu double", "[cuda]") {
  const int64_t batch = GENERATE(1, 5, 257), classes = GENERATE(1, 2, 127, 128, 129, 1000);
  check_device(cuda(), batch, classes, GENERATE(0.0, 0.1));
}

TEST_CASE("cross_entropy on cuda gives the same bits twice", "[cuda]") {
  const Tensor logits = on(cuda(), normal(1, {300, 77}), DType::f32);
  const Tensor targets = on(cuda(), probabilities(2, 300, 77, DType::f32), DType::f32);
  check_same_bits(ops::cross_entropy(cuda(), logits, targets, 0.1), ops::cross_entropy(cuda(), logits, targets, 0.1));
}

TEST_CASE("cross_entropy on cuda shows NaN and takes no bf16", "[cuda]") {
  const Tensor logits =
      on(cuda(), Tensor::from_host(cpu(), {1, 2}, std::vector<double>{1.0, std::nan("")}), DType::f32);
  const Tensor targets = ops::one_hot(cuda(), {0}, 2, DType::f32);
  CHECK(std::isnan(ops::cross_entropy(cuda(), logits, targets, 0.0).to_host<float>()[0]));
  const Tensor narrow = on(cuda(), normal(1, {1, 2}), DType::bf16);
  CHECK_THROWS_AS(ops::cross_entropy(cuda(), narrow, narrow, 0.0), DTypeError);
}

TEST_CASE("cross_entropy in cpu float equals cpu double", "[cpu]") {
  const int64_t batch = GENERATE(1, 5), classes = GENERATE(1, 2, 100);
  check_device(cpu(), batch, classes, GENERATE(0.0, 0.1));
}

TEST_CASE("cross_entropy gradient", "[cpu][grad]") {
  const double smoothing = GENERATE(0.0, 0.1, 1.0);
  const auto check = [&](int64_t batch, int64_t classes, double total) {
    std::vector<double> values = probabilities(3, batch, classes, DType::f64).to_host<double>();
    for (double& value : values) value *= total;
    const Tensor targets = Tensor::from_host(cpu(), {batch, classes}, values);
    check_gradient(
        [&](Context& c, const std::vector<Variable>& v) { return cross_entropy(c, v[0], targets, smoothing); },
        std::vector<Shape>{{batch, classes}});
  };
  check(4, 7, 1.0);
  check(3, 5, 0.6);  // targets need not sum to one
  check(1, 1, 1.0);
}

TEST_CASE("cross_entropy of equal logits is log(classes), and a shift of a row changes nothing", "[cpu]") {
  const int64_t classes = 9;
  const Tensor targets = ops::one_hot(cpu(), {4, 0, 8}, classes, DType::f64);
  check_close(ops::cross_entropy(cpu(), Tensor::zeros(cpu(), {3, classes}, DType::f64), targets, 0.1),
              scalar(std::log(9.0)), 1e-14);
  std::vector<double> values = normal(1, {3, classes}).to_host<double>();
  const Tensor before = ops::cross_entropy(cpu(), Tensor::from_host(cpu(), {3, classes}, values), targets, 0.1);
  for (double& value : values) value += 900.0;  // exp would overflow
  check_close(ops::cross_entropy(cpu(), Tensor::from_host(cpu(), {3, classes}, values), targets, 0.1), before, 1e-12);
}

TEST_CASE("one_hot marks its labels", "[cpu]") {
  const Tensor hot = ops::one_hot(cpu(), {2, 0}, 3, DType::f32);
  CHECK(hot.shape() == Shape{2, 3});
  CHECK(hot.to_host<float>() == std::vector<float>{0, 0, 1, 1, 0, 0});
  CHECK(ops::one_hot(cpu(), {}, 3, DType::f64).shape() == Shape{0, 3});
  CHECK_THROWS_WITH(ops::one_hot(cpu(), {0, 3}, 3, DType::f32), "one_hot: label 3 at index 1 is outside [0, 3)");
  CHECK_THROWS_AS(ops::one_hot(cpu(), {-1}, 3, DType::f32), Error);
  CHECK_THROWS_AS(ops::one_hot(cpu(), {0}, 0, DType::f32), Error);
  CHECK_THROWS_AS(ops::one_hot(cpu(), {0}, 3, DType::i64), DTypeError);
}

TEST_CASE("cross_entropy names what does not match", "[cpu]") {
  const Tensor logits = normal(1, {2, 3});
  CHECK_THROWS_AS(ops::cross_entropy(cpu(), logits, normal(2, {2, 4}), 0.0), ShapeError);
  CHECK_THROWS_AS(ops::cross_entropy(cpu(), normal(1, {6}), normal(2, {6}), 0.0), ShapeError);
  CHECK_THROWS_AS(ops::cross_entropy(cpu(), normal(1, {0, 3}), normal(2, {0, 3}), 0.0), ShapeError);
  CHECK_THROWS_AS(ops::cross_entropy(cpu(), logits, on(cpu(), logits, DType::f32), 0.0), DTypeError);
  CHECK_THROWS_AS(ops::cross_entropy(cpu(), logits, logits, 1.5), Error);
  CHECK_THROWS_AS(ops::cross_entropy_grad(cpu(), normal(1, {2}), logits, logits, 0.0), ShapeError);
}

namespace {

void check_cross_entropy_files(Context& ctx, DType dtype) {
  for (const std::string file : {"cross_entropy_1x3.safetensors", "cross_entropy_6x10.safetensors"}) {
    check_golden_op(ctx, file, dtype, {"logits"}, [dtype](Context& c, const auto& golden, const auto& v) {
      return cross_entropy(c, v[0], on(c, golden.at("targets"), dtype), golden_item(golden, "label_smoothing"));
    });
  }
}

}  // namespace

TEST_CASE("cross_entropy matches its golden files", "[cpu][golden]") {
  check_cross_entropy_files(cpu(), DType::f64);
  check_cross_entropy_files(cpu(), DType::f32);
}
TEST_CASE("cross_entropy on cuda matches its golden files", "[cuda][golden]") {
  check_cross_entropy_files(cuda(), DType::f32);
}

}  // namespace pm::test
