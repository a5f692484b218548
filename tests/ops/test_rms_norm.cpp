#include <cmath>

#include "autograd/core/variable.h"
#include "autograd/ops/rms_norm.h"
#include "engine/ops/elementwise/scaled_add.h"
#include "engine/ops/norm/rms_norm.h"
#include "tests/support/golden.h"
#include "tests/support/test.h"

namespace pm::test {
namespace {

constexpr double kEps = 1e-5;

// The gradient of a single channel is eps / (x^2 + eps)^1.5, the difference of two nearly equal numbers when eps is
// small: a large eps keeps it a test of the code rather than of float32.
double eps_for(int64_t channels) { return channels == 1 ? 0.5 : kEps; }

// Inputs and upstream gradients have a mean of their own, so that the sums over rows do not cancel to rounding noise.
void check_cuda(int64_t rows, int64_t channels, DType dtype) {
  CAPTURE(to_string(dtype), rows, channels);
  const double eps = eps_for(channels);
  const Tensor x = uniform(1, {rows, channels}, -1.5, 2.5, dtype),
               dout = uniform(2, {rows, channels}, -0.5, 1.5, dtype);
  const Tensor weight = uniform(3, {channels}, 0.5, 1.5, DType::f32);
  const Tensor device_x = on(cuda(), x, dtype), device_weight = on(cuda(), weight, DType::f32);
  check_close(ops::rms_norm(cuda(), device_x, device_weight, eps), ops::rms_norm(cpu(), x, weight, eps),
              tolerance(dtype), "out");
  const auto actual = ops::rms_norm_grad(cuda(), on(cuda(), dout, dtype), device_x, device_weight, eps);
  const auto expected = ops::rms_norm_grad(cpu(), dout, x, weight, eps);
  check_close(actual.dx, expected.dx, tolerance(dtype), "dx");
  check_close(actual.dweight, expected.dweight, tolerance(DType::f32, rows), "dweight");
  const Tensor addend = uniform(4, {rows, channels}, -1.0, 2.0, dtype);
  const auto plus_addend =
      ops::rms_norm_grad(cuda(), on(cuda(), dout, dtype), device_x, device_weight, eps, on(cuda(), addend, dtype));
  check_close(plus_addend.dx, ops::rms_norm_grad(cpu(), dout, x, weight, eps, addend).dx, tolerance(dtype),
              "dx with an addend");
  check_same_bits(plus_addend.dweight, actual.dweight, "dweight with an addend");
}

}  // namespace

TEST_CASE("rms_norm of short rows on cuda equals cpu double", "[cuda]") {
  const auto dtype = GENERATE(DType::f32, DType::bf16);
  const int64_t channels = GENERATE(1, 3, 6, 31, 32);
  const int64_t rows = GENERATE(0, 1, 127, 128, 129, 10'007);
  check_cuda(rows, channels, dtype);
}

TEST_CASE("rms_norm of long rows on cuda equals cpu double", "[cuda]") {
  const auto dtype = GENERATE(DType::f32, DType::bf16);
  const int64_t channels = GENERATE(33, 96, 128, 129, 192, 768, 1025, 1537, 4097);
  const int64_t rows = GENERATE(0, 1, 3, 31, 32, 33, 257);
  check_cuda(rows, channels, dtype);
}

TEST_CASE("rms_norm on cuda loops over more rows than the grid holds", "[cuda]") {
  const auto dtype = GENERATE(DType::f32, DType::bf16);
  check_cuda(600'011, 3, dtype);
  check_cuda(136'001, 33, dtype);
  check_cuda(34'003, 129, dtype);
  check_cuda(70, 12'289, dtype);
}

TEST_CASE("rms_norm on cuda gives the same bits twice", "[cuda]") {
  const auto dtype = GENERATE(DType::f32, DType::bf16);
  const int64_t channels = GENERATE(6, 48, 192);
  const Shape shape{5'003, channels};
  const Tensor x = on(cuda(), normal(1, shape), dtype), dout = on(cuda(), normal(2, shape), dtype);
  const Tensor weight = on(cuda(), normal(3, {channels}), DType::f32);
  const auto first = ops::rms_norm_grad(cuda(), dout, x, weight, kEps),
             second = ops::rms_norm_grad(cuda(), dout, x, weight, kEps);
  check_same_bits(first.dx, second.dx, "dx");
  check_same_bits(first.dweight, second.dweight, "dweight");
}

TEST_CASE("rms_norm in cpu float equals cpu double", "[cpu]") {
  const int64_t channels = GENERATE(1, 3, 31, 192, 1025), rows = GENERATE(0, 1, 131);
  CAPTURE(rows, channels);
  const double eps = eps_for(channels);
  const Tensor x = uniform(1, {rows, channels}, -1.5, 2.5, DType::f32),
               dout = uniform(2, {rows, channels}, -0.5, 1.5, DType::f32);
  const Tensor weight = uniform(3, {channels}, 0.5, 1.5, DType::f32);
  const auto narrow = [](const Tensor& t) { return on(cpu(), t, DType::f32); };
  check_close(ops::rms_norm(cpu(), narrow(x), narrow(weight), eps), ops::rms_norm(cpu(), x, weight, eps),
              tolerance(DType::f32), "out");
  const auto actual = ops::rms_norm_grad(cpu(), narrow(dout), narrow(x), narrow(weight), eps);
  const auto expected = ops::rms_norm_grad(cpu(), dout, x, weight, eps);
  check_close(actual.dx, expected.dx, tolerance(DType::f32), "dx");
  check_close(actual.dweight, expected.dweight, tolerance(DType::f32), "dweight");
}

TEST_CASE("rms_norm gradient", "[cpu][grad]") {
  const auto fn = [](Context& c, const std::vector<Variable>& v) { return rms_norm(c, v[0], v[1], kEps); };
  check_gradient(fn, std::vector<Shape>{{2, 3, 5}, {5}});
  check_gradient(fn, std::vector<Shape>{{7}, {7}});
  check_gradient(fn, std::vector<Shape>{{67, 3}, {3}});
  check_gradient(fn, std::vector<Shape>{{2, 31, 33}, {33}});
  check_gradient([](Context& c, const std::vector<Variable>& v) { return rms_norm(c, v[0], v[1], eps_for(1)); },
                 std::vector<Shape>{{1}, {1}});
}

// Through out = rms_norm(x) + x: what reaches x around the norm is the addend.
TEST_CASE("rms_norm gradient with an addend", "[cpu][grad]") {
  const auto residual = [](Context& ctx, const std::vector<Variable>& v) {
    const Tensor x = v[0].value(), weight = v[1].value();
    return record(ctx, "residual", ops::scaled_add(ctx, ops::rms_norm(ctx, x, weight, kEps), 1.0, x, 1.0), v,
                  [x, weight](Context& c, const Tensor& dout, GradSink& grads) {
                    ops::RmsNormGrads sums = ops::rms_norm_grad(c, dout, x, weight, kEps, dout);
                    grads.add(0, std::move(sums.dx));
                    grads.add(1, std::move(sums.dweight));
                  });
  };
  check_gradient(residual, std::vector<Shape>{{2, 3, 5}, {5}});
  check_gradient(residual, std::vector<Shape>{{67, 3}, {3}});
  check_gradient(residual, std::vector<Shape>{{2, 31, 33}, {33}});
}

TEST_CASE("rms_norm gradient adds to what dx holds", "[cpu]") {
  const int64_t rows = GENERATE(1, 131);
  const Tensor x = normal(1, {rows, 12}), dout = normal(2, {rows, 12}), weight = normal(3, {12});
  const Tensor addend = normal(4, {rows, 12});
  Tensor dx = addend.copy_to(cpu()), dweight = normal(5, {12});
  const auto expected = ops::rms_norm_grad(cpu(), dout, x, weight, kEps);
  cpu::rms_norm_grad(
      {dout.raw(), x.raw(), weight.raw(), dx.raw(), dweight.raw(), rows, 12, kEps, DType::f64, dx.raw()});
  check_close(dx, ops::scaled_add(cpu(), expected.dx, 1.0, addend, 1.0), tolerance(DType::f64), "dx");
  check_close(dweight, expected.dweight, 0.0, "dweight");
}

TEST_CASE("rms_norm gives rows of unit mean square and ignores their scale", "[cpu]") {
  const int64_t channels = 12;
  const Tensor x = normal(1, {9, channels}),
               ones = Tensor::from_host(cpu(), {channels}, std::vector<double>(channels, 1.0));
  const Tensor out = ops::rms_norm(cpu(), x, ones, 0.0);
  const std::vector<double> values = out.to_host<double>();
  for (int64_t row = 0; row < 9; ++row) {
    double squares = 0.0;
    for (int64_t c = 0; c < channels; ++c) squares += values[row * channels + c] * values[row * channels + c];
    CHECK(std::abs(squares / channels - 1.0) < 1e-12);
  }
  check_close(ops::rms_norm(cpu(), ops::scale(cpu(), x, 37.0), ones, 0.0), out, 1e-12);
}

TEST_CASE("rms_norm names what does not match", "[cpu]") {
  const Tensor x = normal(1, {2, 3}), weight = normal(2, {3});
  CHECK_THROWS_AS(ops::rms_norm(cpu(), x, normal(2, {4}), kEps), ShapeError);
  CHECK_THROWS_AS(ops::rms_norm(cpu(), x, normal(2, {3, 1}), kEps), ShapeError);
  CHECK_THROWS_AS(ops::rms_norm(cpu(), normal(1, {2, 0}), normal(2, {0}), kEps), ShapeError);
  CHECK_THROWS_AS(ops::rms_norm(cpu(), normal(1, {}), weight, kEps), ShapeError);
  CHECK_THROWS_AS(ops::rms_norm(cpu(), x, on(cpu(), weight, DType::f32), kEps), DTypeError);
  CHECK_THROWS_AS(ops::rms_norm(cpu(), on(cpu(), x, DType::bf16), on(cpu(), weight, DType::f32), kEps), DTypeError);
  CHECK_THROWS_AS(ops::rms_norm_grad(cpu(), normal(1, {3, 2}), x, weight, kEps), ShapeError);
  CHECK_THROWS_AS(ops::rms_norm_grad(cpu(), on(cpu(), x, DType::f32), x, weight, kEps), DTypeError);
  CHECK_THROWS_AS(ops::rms_norm_grad(cpu(), x, x, weight, kEps, normal(1, {3, 2})), ShapeError);
  CHECK_THROWS_AS(ops::rms_norm_grad(cpu(), x, x, weight, kEps, on(cpu(), x, DType::f32)), DTypeError);
}

namespace {

void check_rms_norm_files(Context& ctx, DType dtype) {
  for (const std::string file : {"rms_norm_5x7.safetensors", "rms_norm_3x384.safetensors"}) {
    check_golden_op(ctx, file, dtype, {"x", "weight"}, [](Context& c, const auto& golden, const auto& v) {
      return rms_norm(c, v[0], v[1], golden_item(golden, "eps"));
    });
  }
}

}  // namespace

TEST_CASE("rms_norm matches its golden files", "[cpu][golden]") {
  check_rms_norm_files(cpu(), DType::f64);
  check_rms_norm_files(cpu(), DType::f32);
}
TEST_CASE("rms_norm on cuda matches its golden files", "[cuda][golden]") { check_rms_norm_files(cuda(), DType::f32); }

}  // namespace pm::test
