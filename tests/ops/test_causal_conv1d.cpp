#include <algorithm>
#include <cmath>
#include <limits>

#include "autograd/ops/causal_conv1d.h"
#include "engine/cpu/core/fast_math.h"
#include "engine/ops/conv/causal_conv1d.h"
#include "tests/support/golden.h"
#include "tests/support/test.h"

namespace pm::test {
namespace {

// Inputs and upstream gradients have a mean of their own, so that the sums over tokens do not cancel to rounding noise.
struct Problem {
  Problem(int64_t batch, int64_t seq_len, int64_t d_inner, int64_t d_conv, DType dtype)
      : x(uniform(1, {batch, seq_len, d_inner}, -1.5, 2.5, dtype)),
        dout(uniform(2, {batch, seq_len, d_inner}, -0.5, 1.5, dtype)),
        weight(normal(3, {d_inner, 1, d_conv}, 0.5, DType::f32)),
        bias(normal(4, {d_inner}, 0.5, DType::f32)) {}
  Tensor x, dout, weight, bias;
};

void check_device(Context& ctx, const Problem& p, bool reverse, DType dtype) {
  CAPTURE(to_string(dtype), p.x.shape().str(), p.weight.shape().str(), reverse);
  const Tensor x = on(ctx, p.x, dtype), weight = on(ctx, p.weight, DType::f32), bias = on(ctx, p.bias, DType::f32);
  check_close(ops::causal_conv1d(ctx, x, weight, bias, reverse),
              ops::causal_conv1d(cpu(), p.x, p.weight, p.bias, reverse), tolerance(dtype), "out");
  const auto actual = ops::causal_conv1d_grad(ctx, on(ctx, p.dout, dtype), x, weight, bias, reverse);
  const auto expected = ops::causal_conv1d_grad(cpu(), p.dout, p.x, p.weight, p.bias, reverse);
  const double sum_tolerance = tolerance(DType::f32, p.x.size(0) * p.x.size(1));
  check_close(actual.dx, expected.dx, tolerance(dtype), "dx");
  check_close(actual.dweight, expected.dweight, sum_tolerance, "dweight");
  check_close(actual.dbias, expected.dbias, sum_tolerance, "dbias");
}

// The definition, one output at a time.
double reference(const Problem& p, int64_t b, int64_t t, int64_t d, bool reverse) {
  const std::vector<double> x = p.x.to_host<double>(), weight = p.weight.to_host<double>(),
                            bias = p.bias.to_host<double>();
  const int64_t seq_len = p.x.size(1), d_inner = p.x.size(2), d_conv = p.weight.size(2);
  double pre = bias[d];
  for (int64_t k = 0; k < d_conv; ++k) {
    const int64_t back = d_conv - 1 - k, source = reverse ? t + back : t - back;
    if (0 <= source && source < seq_len) pre += weight[d * d_conv + k] * x[(b * seq_len + source) * d_inner + d];
  }
  return pre / (1.0 + std::exp(-pre));
}

// The tensor with axis 1 reversed.
Tensor reversed(const Tensor& x) {
  const int64_t batch = x.size(0), seq_len = x.size(1), d_inner = x.size(2);
  const std::vector<double> source = x.to_host<double>();
  std::vector<double> target(source.size());
  for (int64_t b = 0; b < batch; ++b) {
    for (int64_t t = 0; t < seq_len; ++t) {
      std::copy_n(source.data() + (b * seq_len + t) * d_inner, d_inner,
                  target.data() + (b * seq_len + seq_len - 1 - t) * d_inner);
    }
  }
  return Tensor::from_host(cpu(), x.shape(), target);
}

}  // namespace

TEST_CASE("causal_conv1d with few channels on cuda equals cpu double", "[cuda]") {
  const auto dtype = GENERATE(DType::f32, DType::bf16);
  const int64_t d_inner = GENERATE(1, 3, 6, 24, 31);
  const int64_t seq_len = GENERATE(0, 1, 2, 3, 4, 63, 64, 65, 335, 336, 337, 5'001);
  check_device(cuda(), Problem(2, seq_len, d_inner, 4, dtype), GENERATE(false, true), dtype);
}

TEST_CASE("causal_conv1d with many channels on cuda equals cpu double", "[cuda]") {
  const auto dtype = GENERATE(DType::f32, DType::bf16);
  const int64_t d_inner = GENERATE(32, 33, 65, 192);
  const int64_t seq_len = GENERATE(0, 1, 3, 16, 17, 28, 29, 30, 64, 117, 1'003);
  check_device(cuda(), Problem(2, seq_len, d_inner, 4, dtype), GENERATE(false, true), dtype);
}

TEST_CASE("causal_conv1d with any number of taps on cuda equals cpu double", "[cuda]") {
  const auto dtype = GENERATE(DType::f32, DType::bf16);
  const int64_t d_conv = GENERATE(1, 2, 3, 4, 5, 7, 8), d_inner = GENERATE(6, 32, 70, 300),
                seq_len = GENERATE(1, 7, 130);
  check_device(cuda(), Problem(3, seq_len, d_inner, d_conv, dtype), GENERATE(false, true), dtype);
}

TEST_CASE("causal_conv1d on cuda loops over more tiles than the gradient's grid holds", "[cuda]") {
  const auto dtype = GENERATE(DType::f32, DType::bf16);
  const bool reverse = GENERATE(false, true);
  // Every sequence has a tile of its own, however short it is.
  check_device(cuda(), Problem(2'200, 3, 6, 4, dtype), reverse, dtype);
  check_device(cuda(), Problem(1'100, 5, 100, 4, dtype), reverse, dtype);
  check_device(cuda(), Problem(2, 50, 1'537, 4, dtype), reverse, dtype);
}

TEST_CASE("causal_conv1d on cuda gives the same bits twice", "[cuda]") {
  const auto dtype = GENERATE(DType::f32, DType::bf16);
  const int64_t d_inner = GENERATE(6, 96);
  const Problem p(1, 10'007, d_inner, 4, dtype);
  const Tensor x = on(cuda(), p.x, dtype), dout = on(cuda(), p.dout, dtype);
  const Tensor weight = on(cuda(), p.weight, DType::f32), bias = on(cuda(), p.bias, DType::f32);
  const auto first = ops::causal_conv1d_grad(cuda(), dout, x, weight, bias, true);
  const auto second = ops::causal_conv1d_grad(cuda(), dout, x, weight, bias, true);
  check_same_bits(first.dx, second.dx, "dx");
  check_same_bits(first.dweight, second.dweight, "dweight");
  check_same_bits(first.dbias, second.dbias, "dbias");
}

TEST_CASE("causal_conv1d in cpu float equals cpu double", "[cpu]") {
  const bool reverse = GENERATE(false, true);
  const int64_t seq_len = GENERATE(0, 1, 3, 300);
  check_device(cpu(), Problem(2, seq_len, 6, 4, DType::f32), reverse, DType::f32);
  check_device(cpu(), Problem(2, seq_len, 300, 3, DType::f32), reverse, DType::f32);
}

TEST_CASE("causal_conv1d follows its definition", "[cpu]") {
  const bool reverse = GENERATE(false, true);
  const int64_t seq_len = GENERATE(1, 3, 53), d_inner = GENERATE(1, 6, 300), d_conv = GENERATE(1, 4, 8);
  CAPTURE(reverse, seq_len, d_inner, d_conv);
  const Problem p(2, seq_len, d_inner, d_conv, DType::f64);
  const std::vector<double> out = ops::causal_conv1d(cpu(), p.x, p.weight, p.bias, reverse).to_host<double>();
  for (int64_t b = 0; b < 2; ++b) {
    for (int64_t t = 0; t < seq_len; t += 1 + seq_len / 8) {
      const int64_t d = (5 * t + b) % d_inner;
      CHECK(std::abs(out[(b * seq_len + t) * d_inner + d] - reference(p, b, t, d, reverse)) < 1e-12);
    }
  }
}

TEST_CASE("causal_conv1d gradient", "[cpu][grad]") {
  const bool reverse = GENERATE(false, true);
  const auto fn = [reverse](Context& c, const std::vector<Variable>& v) {
    return causal_conv1d(c, v[0], v[1], v[2], reverse);
  };
  check_gradient(fn, std::vector<Shape>{{2, 7, 3}, {3, 1, 4}, {3}});
  check_gradient(fn, std::vector<Shape>{{1, 1, 1}, {1, 1, 1}, {1}});
  check_gradient(fn, std::vector<Shape>{{2, 2, 5}, {5, 1, 8}, {5}});
  check_gradient(fn, std::vector<Shape>{{1, 3, 2}, {2, 1, 3}, {2}});
  check_gradient(fn, std::vector<Shape>{{1, 90, 270}, {270, 1, 4}, {270}});  // several chunks, one token per span
  check_gradient(fn, std::vector<Shape>{{2, 1500, 7}, {7, 1, 4}, {7}});      // several chunks of long spans
}

TEST_CASE("causal_conv1d in reverse is the flip of the flipped sequence", "[cpu]") {
  const Problem p(2, 41, 6, 4, DType::f64);
  check_same_bits(ops::causal_conv1d(cpu(), p.x, p.weight, p.bias, true),
                  reversed(ops::causal_conv1d(cpu(), reversed(p.x), p.weight, p.bias, false)));
}

TEST_CASE("causal_conv1d does not look ahead", "[cpu]") {
  const Problem p(1, 40, 6, 4, DType::f64);
  const Tensor whole = ops::causal_conv1d(cpu(), p.x, p.weight, p.bias, false);
  const Tensor head = p.x.reshape({40, 6}).rows(0, 17).reshape({1, 17, 6});
  check_same_bits(ops::causal_conv1d(cpu(), head, p.weight, p.bias, false),
                  whole.reshape({40, 6}).rows(0, 17).reshape({1, 17, 6}));
}

TEST_CASE("the exponential of inner loops is within 3e-7 of exp in float", "[cpu]") {
  double worst = 0.0;
  for (int i = 0; i <= 175'000; ++i) {
    const float x = static_cast<float>(-87.0 + 0.001 * i);
    const double exact = std::exp(static_cast<double>(x));
    worst = std::max(worst, std::abs(cpu::exponential(x) - exact) / exact);
  }
  CHECK(worst < 3e-7);
  CHECK(cpu::exponential(0.0f) == 1.0f);
  CHECK(std::isfinite(cpu::exponential(1e30f)));
  CHECK(cpu::exponential(-std::numeric_limits<float>::infinity()) < 2e-38f);
  CHECK(std::isnan(cpu::exponential(std::nanf(""))));
}

TEST_CASE("causal_conv1d names what does not match", "[cpu]") {
  const Problem p(2, 5, 3, 4, DType::f64);
  const auto run = [](const Tensor& x, const Tensor& weight, const Tensor& bias) {
    return ops::causal_conv1d(cpu(), x, weight, bias, false);
  };
  CHECK_THROWS_AS(run(normal(1, {5, 3}), p.weight, p.bias), ShapeError);
  CHECK_THROWS_AS(run(p.x, normal(1, {3, 4}), p.bias), ShapeError);
  CHECK_THROWS_AS(run(p.x, normal(1, {4, 1, 4}), p.bias), ShapeError);
  CHECK_THROWS_AS(run(p.x, normal(1, {3, 1, 9}), p.bias), ShapeError);
  CHECK_THROWS_AS(run(p.x, normal(1, {3, 1, 0}), p.bias), ShapeError);
  CHECK_THROWS_AS(run(p.x, p.weight, normal(1, {4})), ShapeError);
  CHECK_THROWS_AS(run(p.x, on(cpu(), p.weight, DType::f32), p.bias), DTypeError);
  CHECK_THROWS_AS(ops::causal_conv1d_grad(cpu(), normal(1, {2, 4, 3}), p.x, p.weight, p.bias, false), ShapeError);
}

namespace {

void check_causal_conv1d_files(Context& ctx, DType dtype) {
  for (const std::string file :
       {"causal_conv1d_forward_1x2x5.safetensors", "causal_conv1d_forward_2x37x6.safetensors",
        "causal_conv1d_reverse_1x2x5.safetensors", "causal_conv1d_reverse_2x37x6.safetensors"}) {
    check_golden_op(ctx, file, dtype, {"x", "weight", "bias"},
                    [reverse = file.find("reverse") != std::string::npos](Context& c, const auto&, const auto& v) {
                      return causal_conv1d(c, v[0], v[1], v[2], reverse);
                    });
  }
}

}  // namespace

TEST_CASE("causal_conv1d matches its golden files", "[cpu][golden]") {
  check_causal_conv1d_files(cpu(), DType::f64);
  check_causal_conv1d_files(cpu(), DType::f32);
}
TEST_CASE("causal_conv1d on cuda matches its golden files", "[cuda][golden]") {
  check_causal_conv1d_files(cuda(), DType::f32);
}

}  // namespace pm::test
