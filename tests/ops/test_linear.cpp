#include <numeric>

#include "autograd/ops/linear.h"
#include "engine/ops/elementwise/scaled_add.h"
#include "engine/ops/gemm/linear.h"
#include "tests/support/golden.h"
#include "tests/support/test.h"

namespace pm::test {
namespace {

struct Case {
  int64_t rows, in;
  std::vector<int64_t> sizes;
  int64_t out() const { return std::accumulate(sizes.begin(), sizes.end(), int64_t{0}); }
};

// Ragged rows around every tile, span and row strand; features on both sides of the step from plain kernels to BLAS; the last
// ones are the products of narrow Mamba blocks, compiled for their widths, in tiles of 32 to 256 rows.
const std::vector<Case>& cases() {
  static const std::vector<Case> all{{0, 3, {6, 6}},
                                     {1, 1, {1}},
                                     {127, 3, {6, 6}},
                                     {128, 6, {1, 16, 16}},
                                     {129, 12, {24, 24}},
                                     {63, 48, {48}},
                                     {64, 24, {1, 33}},
                                     {65, 33, {5}},
                                     {50'177, 3, {6, 6}},
                                     {200'003, 6, {1, 16, 16}},
                                     {0, 49, {7}},
                                     {1, 49, {7}},
                                     {255, 5, {49}},
                                     {256, 48, {3, 16, 16, 16}},
                                     {257, 96, {192, 192}},
                                     {1'003, 48, {96, 96}},
                                     {20'011, 24, {48, 48}},
                                     {50, 768, {48, 16, 16}},
                                     {1, 6, {3}},
                                     {255, 6, {3}},
                                     {256, 6, {3}},
                                     {90'001, 6, {3}},
                                     {513, 12, {6}},
                                     {40'003, 12, {6}},
                                     {31, 24, {12}},
                                     {33'333, 24, {12}},
                                     {64, 48, {24}},
                                     {33'001, 48, {24}},
                                     {31, 3, {6, 6}},
                                     {512, 6, {12, 12}},
                                     {70'001, 6, {12, 12}},
                                     {33'003, 12, {24, 24}}};
  return all;
}

// Up to 48 features on both sides CUDA uses kernels of its own, above cuBLAS.
enum class Width { few, many };
std::vector<Case> cases(Width width) {
  std::vector<Case> chosen;
  for (const Case& c : cases()) {
    if ((c.in <= 48 && c.out() <= 48) == (width == Width::few)) chosen.push_back(c);
  }
  return chosen;
}

std::vector<Tensor> random_douts(const Case& c, DType dtype) {
  std::vector<Tensor> douts;
  for (size_t g = 0; g < c.sizes.size(); ++g) douts.push_back(normal(30 + g, {c.rows, c.sizes[g]}, 1.0, dtype));
  return douts;
}

std::vector<Tensor> all_on(Context& ctx, const std::vector<Tensor>& values, DType dtype) {
  std::vector<Tensor> moved;
  for (const Tensor& value : values) moved.push_back(on(ctx, value, dtype));
  return moved;
}

// out[row, o] = sum x[row, i] weight[o, i] + bias[o], as plain as it gets
Tensor plain_linear(const Tensor& x, const Tensor& weight, const Tensor& bias) {
  const int64_t rows = x.numel() / weight.size(1), in = weight.size(1), out = weight.size(0);
  const std::vector<double> xs = x.to_host<double>(), ws = weight.to_host<double>(), bs = bias.to_host<double>();
  std::vector<double> result;
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t o = 0; o < out; ++o) {
      double sum = bs[static_cast<size_t>(o)];
      for (int64_t i = 0; i < in; ++i)
        sum += xs[static_cast<size_t>(row * in + i)] * ws[static_cast<size_t>(o * in + i)];
      result.push_back(sum);
    }
  }
  return Tensor::from_host(cpu(), {rows, out}, result);
}

// Forward and both gradients of linear_split on `ctx` in `dtype` against CPU double.
void compare_split(Context& ctx, DType dtype, const Case& c) {
  CAPTURE(to_string(dtype), c.rows, c.in, c.sizes);
  const DType param = param_dtype(dtype);
  const Tensor x = normal(1, {c.rows, c.in}, 1.0, dtype), weight = normal(2, {c.out(), c.in}, 0.3, param);
  const std::vector<Tensor> douts = random_douts(c, dtype);
  const Tensor dx = on(ctx, x, dtype), dw = on(ctx, weight, param);
  const std::vector<Tensor> device_douts = all_on(ctx, douts, dtype);

  const std::vector<Tensor> actual = ops::linear_split(ctx, dx, dw, c.sizes);
  const std::vector<Tensor> expected = ops::linear_split(cpu(), x, weight, c.sizes);
  REQUIRE(actual.size() == c.sizes.size());
  for (size_t g = 0; g < actual.size(); ++g) {
    CHECK(actual[g].dtype() == dtype);
    check_close(actual[g], expected[g], tolerance(dtype), "group");
  }
  check_close(ops::linear_grad_input(ctx, device_douts, dw), ops::linear_grad_input(cpu(), douts, weight),
              tolerance(dtype), "dx");
  const Tensor dweight = ops::linear_grad_weight(ctx, device_douts, dx);
  CHECK(dweight.dtype() == param);
  check_close(dweight, ops::linear_grad_weight(cpu(), douts, x), tolerance(param, c.rows), "dweight");
}

void compare_bias(Context& ctx, DType dtype, int64_t rows, int64_t in, int64_t out) {
  CAPTURE(to_string(dtype), rows, in, out);
  const DType param = param_dtype(dtype);
  const Tensor x = normal(1, {rows, in}, 1.0, dtype), weight = normal(2, {out, in}, 0.3, param);
  const Tensor bias = normal(3, {out}, 1.0, param), dout = normal(4, {rows, out}, 1.0, dtype);
  check_close(ops::linear(ctx, on(ctx, x, dtype), on(ctx, weight, param), on(ctx, bias, param)),
              ops::linear(cpu(), x, weight, bias), tolerance(dtype), "out");
  const Tensor addend = normal(5, {rows, out}, 1.0, dtype);
  const Tensor dx = on(ctx, x, dtype), dw = on(ctx, weight, param), device_addend = on(ctx, addend, dtype);
  check_close(ops::linear(ctx, dx, dw, {}, device_addend), ops::linear(cpu(), x, weight, {}, addend), tolerance(dtype),
              "with an addend");
  check_close(ops::linear(ctx, dx, dw, on(ctx, bias, param), device_addend),
              ops::linear(cpu(), x, weight, bias, addend), tolerance(dtype), "with bias and addend");
  check_close(ops::linear_grad_bias(ctx, on(ctx, dout, dtype)), ops::linear_grad_bias(cpu(), dout),
              tolerance(param, rows), "dbias");
}

void check_bits_twice(DType dtype, const Case& c) {
  CAPTURE(to_string(dtype), c.rows, c.in, c.sizes);
  const Tensor x = on(cuda(), normal(1, {c.rows, c.in}), dtype),
               weight = on(cuda(), normal(2, {c.out(), c.in}), DType::f32);
  const std::vector<Tensor> douts = all_on(cuda(), random_douts(c, dtype), dtype);
  check_same_bits(ops::linear_split(cuda(), x, weight, c.sizes)[0], ops::linear_split(cuda(), x, weight, c.sizes)[0]);
  check_same_bits(ops::linear_grad_input(cuda(), douts, weight), ops::linear_grad_input(cuda(), douts, weight));
  check_same_bits(ops::linear_grad_weight(cuda(), douts, x), ops::linear_grad_weight(cuda(), douts, x));
  check_same_bits(ops::linear_grad_bias(cuda(), douts[0]), ops::linear_grad_bias(cuda(), douts[0]));
}

}  // namespace

TEST_CASE("linear of few features on cuda equals cpu double", "[cuda]") {
  const auto dtype = GENERATE(DType::f32, DType::bf16);
  for (const Case& c : cases(Width::few)) compare_split(cuda(), dtype, c);
}

TEST_CASE("linear of many features on cuda equals cpu double", "[cuda][cublas]") {
  const auto dtype = GENERATE(DType::f32, DType::bf16);
  for (const Case& c : cases(Width::many)) compare_split(cuda(), dtype, c);
}

TEST_CASE("linear of few features with bias on cuda equals cpu double", "[cuda]") {
  const auto dtype = GENERATE(DType::f32, DType::bf16);
  const int64_t rows = GENERATE(0, 1, 511, 513, 10'007);
  compare_bias(cuda(), dtype, rows, 3, 7);
}

TEST_CASE("linear of many features with bias on cuda equals cpu double", "[cuda][cublas]") {
  const auto dtype = GENERATE(DType::f32, DType::bf16);
  const int64_t rows = GENERATE(0, 1, 511, 513, 10'007);
  compare_bias(cuda(), dtype, rows, 96, 33);
}

TEST_CASE("linear at the widths of the last layer on cuda equals cpu double", "[cuda][slow][cublas]") {
  const auto dtype = GENERATE(DType::f32, DType::bf16);
  compare_split(cuda(), dtype, {197, 768, {1536, 1536}});
  compare_split(cuda(), dtype, {197, 1536, {768}});
}

TEST_CASE("linear of few features with an addend on cuda equals cpu double", "[cuda]") {
  const auto dtype = GENERATE(DType::f32, DType::bf16);
  const int64_t rows = GENERATE(1, 255, 257, 20'011);
  for (const int64_t out : {3, 6, 12, 24}) compare_bias(cuda(), dtype, rows, 2 * out, out);
}

// Rows of a tensor begin at any multiple of an element, not of a 16-byte word.
TEST_CASE("linear of rows from the middle of a tensor on cuda equals cpu double", "[cuda]") {
  const auto dtype = GENERATE(DType::f32, DType::bf16);
  const int64_t channels = GENERATE(3, 6, 12), first = GENERATE(1, 3), rows = 1'300;
  CAPTURE(to_string(dtype), channels, first);
  const auto inner_rows = [&](const Tensor& t) { return t.rows(first, rows); };
  const Tensor x = normal(1, {rows, 2 * channels}, 1.0, dtype), addend = normal(2, {rows, channels}, 1.0, dtype);
  const Tensor weight = normal(3, {channels, 2 * channels}, 0.3, DType::f32);
  const Tensor device_x = on(cuda(), x, dtype), device_addend = on(cuda(), addend, dtype),
               device_weight = on(cuda(), weight, DType::f32);
  check_close(ops::linear(cuda(), inner_rows(device_x), device_weight, {}, inner_rows(device_addend)),
              ops::linear(cpu(), inner_rows(x), weight, {}, inner_rows(addend)), tolerance(dtype), "out");
  check_close(ops::linear_grad_input(cuda(), {inner_rows(device_addend)}, device_weight),
              ops::linear_grad_input(cpu(), {inner_rows(addend)}, weight), tolerance(dtype), "dx");
  check_close(ops::linear_grad_weight(cuda(), {inner_rows(device_addend)}, inner_rows(device_x)),
              ops::linear_grad_weight(cpu(), {inner_rows(addend)}, inner_rows(x)), tolerance(DType::f32, rows),
              "dweight");
}

TEST_CASE("linear of few features on cuda gives the same bits twice", "[cuda]") {
  const auto dtype = GENERATE(DType::f32, DType::bf16);
  for (const Case& c : cases(Width::few)) check_bits_twice(dtype, c);
}

TEST_CASE("linear of many features on cuda gives the same bits twice", "[cuda][cublas]") {
  const auto dtype = GENERATE(DType::f32, DType::bf16);
  for (const Case& c : cases(Width::many)) check_bits_twice(dtype, c);
}

TEST_CASE("linear in cpu float equals cpu double", "[cpu]") {
  for (const Case& c : cases()) {
    if (c.rows <= 20'011) compare_split(cpu(), DType::f32, c);
  }
  compare_bias(cpu(), DType::f32, 1'003, 3, 7);
  compare_bias(cpu(), DType::f32, 1'003, 96, 33);
}

TEST_CASE("linear equals plain sums", "[cpu]") {
  const int64_t rows = GENERATE(1, 5, 130);
  const int64_t in = GENERATE(1, 6, 48, 49, 100);
  const int64_t out = GENERATE(1, 7, 50);
  CAPTURE(rows, in, out);
  const Tensor x = normal(1, {rows, in}), weight = normal(2, {out, in}), bias = normal(3, {out});
  check_close(ops::linear(cpu(), x, weight, bias), plain_linear(x, weight, bias), tolerance(DType::f64));
}

TEST_CASE("linear gradient", "[cpu][grad]") {
  const auto with_bias = [](Context& c, const std::vector<Variable>& v) { return linear(c, v[0], v[1], v[2]); };
  check_gradient(with_bias, std::vector<Shape>{{2, 3, 5}, {4, 5}, {4}});
  check_gradient(with_bias, std::vector<Shape>{{1, 1}, {1, 1}, {1}});
  check_gradient(with_bias, std::vector<Shape>{{3, 53}, {2, 53}, {2}});
  check_gradient([](Context& c, const std::vector<Variable>& v) { return linear(c, v[0], v[1]); },
                 std::vector<Shape>{{7, 3}, {51, 3}});
}

TEST_CASE("linear_split gradient", "[cpu][grad]") {
  for (const size_t group : {0, 1, 2}) {
    check_gradient(
        [group](Context& c, const std::vector<Variable>& v) {
          return linear_split(c, v[0], v[1], {1, 4, 2})[group];
        },
        std::vector<Shape>{{2, 3, 5}, {7, 5}});
    check_gradient(
        [group](Context& c, const std::vector<Variable>& v) {
          return linear_split(c, v[0], v[1], {3, 40, 20})[group];
        },
        std::vector<Shape>{{2, 6}, {63, 6}});
  }
}

TEST_CASE("linear_split gradient with every group in use", "[cpu][grad]") {
  check_gradient(
      [](Context& c, const std::vector<Variable>& v) {
        const std::vector<Variable> parts = linear_split(c, v[0], v[1], {4, 4, 4});
        return linear(c, linear(c, parts[0], v[2]), linear(c, parts[1], parts[2]));
      },
      std::vector<Shape>{{4, 5}, {12, 5}, {4, 4}});
}

TEST_CASE("linear_split is linear cut into columns", "[cpu]") {
  const int64_t in = GENERATE(5, 60);
  const Tensor x = normal(1, {2, 9, in}), weight = normal(2, {7, in});
  const std::vector<Tensor> parts = ops::linear_split(cpu(), x, weight, {1, 4, 2});
  int64_t first = 0;
  for (const Tensor& part : parts) {
    const int64_t last = first + part.size(-1);
    check_close(part, ops::linear(cpu(), x, weight.rows(first, last).copy_to(cpu())), tolerance(DType::f64));
    first = last;
  }
  CHECK(parts[1].shape() == Shape{2, 9, 4});
}

TEST_CASE("linear is additive in its input", "[cpu]") {
  const Tensor x = normal(1, {33, 6}), weight = normal(2, {9, 6}), zero = Tensor::zeros(cpu(), {33, 6}, DType::f64);
  check_close(ops::linear(cpu(), zero, weight), Tensor::zeros(cpu(), {33, 9}, DType::f64), 0.0);
  const Tensor bias = normal(3, {9});
  const std::vector<double> rows = ops::linear(cpu(), zero, weight, bias).to_host<double>();
  CHECK(rows[9 * 32 + 4] == bias.to_host<double>()[4]);
}

TEST_CASE("linear with an addend is linear plus the addend", "[cpu]") {
  const int64_t rows = GENERATE(1, 5, 1'130);
  const Tensor x = normal(1, {rows, 6}), weight = normal(2, {9, 6}), bias = normal(3, {9}),
               addend = normal(4, {rows, 9});
  const auto plus_addend = [&](const Tensor& out) { return ops::scaled_add(cpu(), out, 1.0, addend, 1.0); };
  check_close(ops::linear(cpu(), x, weight, {}, addend), plus_addend(ops::linear(cpu(), x, weight)),
              tolerance(DType::f64));
  check_close(ops::linear(cpu(), x, weight, bias, addend), plus_addend(ops::linear(cpu(), x, weight, bias)),
              tolerance(DType::f64));
  Tensor in_place = addend.copy_to(cpu());
  cpu::linear({x.raw(), weight.raw(), nullptr, {{in_place.raw(), 9, in_place.raw()}}, rows, 6, 9, DType::f64});
  check_close(in_place, plus_addend(ops::linear(cpu(), x, weight)), tolerance(DType::f64), "in place");
}

TEST_CASE("linear without rows has zero weight gradients", "[cpu]") {
  const Tensor x = normal(1, {0, 6}), dout = normal(2, {0, 4});
  check_close(ops::linear_grad_weight(cpu(), {dout}, x), Tensor::zeros(cpu(), {4, 6}, DType::f64), 0.0);
  check_close(ops::linear_grad_bias(cpu(), dout), Tensor::zeros(cpu(), {4}, DType::f64), 0.0);
}

TEST_CASE("linear names what does not match", "[cpu]") {
  const Tensor x = normal(1, {4, 3}), weight = normal(2, {5, 3});
  CHECK_THROWS_AS(ops::linear(cpu(), x, normal(2, {5, 4})), ShapeError);
  CHECK_THROWS_AS(ops::linear(cpu(), x, normal(2, {5})), ShapeError);
  CHECK_THROWS_AS(ops::linear(cpu(), x, weight, normal(3, {4})), ShapeError);
  CHECK_THROWS_AS(ops::linear(cpu(), x, weight, {}, normal(3, {3, 5})), ShapeError);
  CHECK_THROWS_AS(ops::linear(cpu(), x, weight, {}, on(cpu(), normal(3, {4, 5}), DType::f32)), DTypeError);
  CHECK_THROWS_AS(ops::linear(cpu(), x, on(cpu(), weight, DType::f32)), DTypeError);
  CHECK_THROWS_AS(ops::linear(cpu(), on(cpu(), x, DType::bf16), on(cpu(), weight, DType::f32)), DTypeError);
  CHECK_THROWS_AS(ops::linear_split(cpu(), x, weight, {2, 2}), ShapeError);
  CHECK_THROWS_AS(ops::linear_split(cpu(), x, weight, {5, 0}), ShapeError);
  CHECK_THROWS_AS(ops::linear_split(cpu(), x, weight, {1, 1, 1, 1, 1}), ShapeError);
  CHECK_THROWS_AS(ops::linear_grad_weight(cpu(), {normal(1, {4, 5})}, normal(1, {5, 3})), ShapeError);
  CHECK_THROWS_AS(ops::linear_grad_input(cpu(), {normal(1, {4, 5}), normal(1, {3, 5})}, normal(1, {10, 3})),
                  ShapeError);
}

namespace {

void check_linear_files(Context& ctx, DType dtype) {
  for (const std::string file : {"linear_1x1_to_1.safetensors", "linear_2x9x5_to_7.safetensors"}) {
    check_golden_op(ctx, file, dtype, {"x", "weight", "bias"},
                    [](Context& c, const auto&, const auto& v) { return linear(c, v[0], v[1], v[2]); });
  }
}

}  // namespace

TEST_CASE("linear matches its golden files", "[cpu][golden]") {
  check_linear_files(cpu(), DType::f64);
  check_linear_files(cpu(), DType::f32);
}
TEST_CASE("linear on cuda matches its golden files", "[cuda][golden]") { check_linear_files(cuda(), DType::f32); }

}  // namespace pm::test
