#include <cmath>
#include <limits>
#include <string>

#include "autograd/ops/region_fusion.h"
#include "tests/support/golden.h"
#include "tests/support/test.h"

namespace pm::test {
namespace {

struct Case {
  int64_t batch, n_regions, region_len, channels, k;
};

const std::vector<std::string> kGoldenFiles{
    "region_fusion_n2_k1_2x4.safetensors", "region_fusion_n3_k1_2x4.safetensors", "region_fusion_n8_k4_2x4.safetensors",
    "region_fusion_n15_k4_2x4.safetensors"};

// Regions of one token (the CLS) with one channel per pair of values: (1, n, 1, 2).
Tensor cls_only(const std::vector<double>& values) {
  return Tensor::from_host(cpu(), {1, static_cast<int64_t>(values.size()) / 2, 1, 2}, values);
}

void check_golden(Context& ctx, const std::string& file, DType dtype, double tolerance) {
  CAPTURE(file);
  const auto golden = load_golden(file);
  const int64_t k = golden.at("k").to_host<int64_t>().at(0);
  const auto fused = ops::region_fusion(ctx, on(ctx, golden.at("tokens"), dtype), k);
  check_close(fused.out, golden.at("out"), tolerance, "out");
  check_close(ops::region_fusion_grad(ctx, on(ctx, golden.at("dout"), dtype), fused.target, fused.count),
              golden.at("dtokens"), tolerance, "dtokens");
}

}  // namespace

TEST_CASE("region_fusion on cuda equals cpu double", "[cuda]") {
  const auto dtype = GENERATE(DType::f32, DType::bf16);
  const auto shape =
      GENERATE(Case{0, 4, 5, 3, 2}, Case{2, 0, 5, 3, 0}, Case{1, 1, 5, 3, 0}, Case{2, 2, 1, 1, 1}, Case{3, 3, 5, 3, 1},
               Case{2, 8, 9, 8, 0}, Case{2, 33, 10, 33, 16}, Case{1, 131, 17, 40, 31}, Case{2, 257, 1025, 3, 100},
               Case{3, 1030, 5, 31, 515}, Case{1, 2501, 2, 6, 777});
  CAPTURE(to_string(dtype), shape.batch, shape.n_regions, shape.region_len, shape.channels, shape.k);
  const Tensor tokens = normal(1, {shape.batch, shape.n_regions, shape.region_len, shape.channels}, 1.0, dtype);
  const Tensor device_tokens = on(cuda(), tokens, dtype);
  const auto expected = ops::region_fusion(cpu(), tokens, shape.k);
  const auto actual = ops::region_fusion(cuda(), device_tokens, shape.k);
  CHECK(actual.target.to_host<int64_t>() == expected.target.to_host<int64_t>());
  CHECK(actual.count.to_host<int64_t>() == expected.count.to_host<int64_t>());
  check_close(actual.out, expected.out, tolerance(dtype), "out");
  check_same_bits(actual.out, ops::region_fusion(cuda(), device_tokens, shape.k).out, "two runs");

  const Tensor dout = normal(2, expected.out.shape(), 1.0, dtype), device_dout = on(cuda(), dout, dtype);
  const Tensor dtokens = ops::region_fusion_grad(cuda(), device_dout, actual.target, actual.count);
  check_close(dtokens, ops::region_fusion_grad(cpu(), dout, expected.target, expected.count), tolerance(dtype),
              "dtokens");
  check_same_bits(dtokens, ops::region_fusion_grad(cuda(), device_dout, actual.target, actual.count), "two runs");
}

TEST_CASE("region_fusion on cuda breaks ties as the cpu does", "[cuda]") {
  // One bit per value: many regions have equal CLS tokens, many are zero.
  const int64_t n = GENERATE(6, 40, 301);
  std::vector<double> bits;
  for (const double value : uniform(3, {2, n, 3, 4}, 0.0, 1.0).to_host<double>())
    bits.push_back(value < 0.3 ? 1.0 : 0.0);
  const Tensor tokens = Tensor::from_host(cpu(), {2, n, 3, 4}, bits);
  const auto expected = ops::region_fusion(cpu(), tokens, n / 3);
  const auto actual = ops::region_fusion(cuda(), on(cuda(), tokens, DType::f32), n / 3);
  CHECK(actual.target.to_host<int64_t>() == expected.target.to_host<int64_t>());
  check_close(actual.out, expected.out, tolerance(DType::f32));
}

TEST_CASE("region_fusion survives NaN on cuda as on the cpu", "[cuda]") {
  Tensor tokens = normal(1, {1, 9, 1, 3}, 1.0, DType::f32);
  tokens.data<double>()[0] = tokens.data<double>()[5 * 3] = std::numeric_limits<double>::quiet_NaN();
  CHECK(ops::region_fusion(cuda(), on(cuda(), tokens, DType::f32), 4).target.to_host<int64_t>() ==
        ops::region_fusion(cpu(), tokens, 4).target.to_host<int64_t>());
}

TEST_CASE("region_fusion matches its golden files", "[cpu][golden]") {
  // The files are rounded to float32.
  for (const std::string& file : kGoldenFiles) check_golden(cpu(), file, DType::f64, 1e-6);
}

TEST_CASE("region_fusion on cuda matches its golden files", "[cuda][golden]") {
  for (const std::string& file : kGoldenFiles) check_golden(cuda(), file, DType::f32, tolerance(DType::f32));
}

TEST_CASE("region_fusion gradient", "[cpu][grad]") {
  const auto shape = GENERATE(Case{1, 1, 1, 1, 0}, Case{1, 2, 3, 2, 1}, Case{2, 7, 3, 3, 3}, Case{2, 6, 2, 4, 2});
  check_gradient([&](Context& c, const std::vector<Variable>& v) { return region_fusion(c, v[0], shape.k).out; },
                 std::vector<Shape>{{shape.batch, shape.n_regions, shape.region_len, shape.channels}});
}

TEST_CASE("region_fusion of two equal regions keeps their content", "[cpu]") {
  const Tensor region = normal(1, {1, 1, 17, 5});
  std::vector<double> twice = region.to_host<double>();
  twice.insert(twice.end(), twice.begin(), twice.begin() + 17 * 5);
  const Tensor tokens = Tensor::from_host(cpu(), {1, 2, 17, 5}, twice);
  check_same_bits(ops::region_fusion(cpu(), tokens, 1).out, region);
}

TEST_CASE("region_fusion with k = 0 changes nothing", "[cpu]") {
  const int64_t n = GENERATE(1, 2, 5);
  const Tensor tokens = normal(1, {2, n, 3, 4});
  const auto fused = ops::region_fusion(cpu(), tokens, 0);
  check_same_bits(fused.out, tokens);
  for (int64_t i = 0; i < 2 * n; ++i) CHECK(fused.target.to_host<int64_t>()[static_cast<size_t>(i)] == i % n);
}

TEST_CASE("region_fusion merges the most similar probes, lowest index first", "[cpu]") {
  using Targets = std::vector<int64_t>;
  // Probes 0, 2, 4 are all equal to gallery 1 and 3; each takes region 1; the first two probes are merged.
  const Tensor equal = cls_only({1, 2, 1, 2, 1, 2, 1, 2, 1, 2, 1, 2, 1, 2});
  CHECK(ops::region_fusion(cpu(), equal, 2).target.to_host<int64_t>() == Targets{0, 0, 0, 1, 2, 3, 4});
  // Probe 2 is closest to its gallery (region 1), then probe 0 (region 3); region 4 stays although it equals both.
  const Tensor mixed = cls_only({0, 1, 1, 0, 2, 0, 1, 3, 1, 0});
  const auto one = ops::region_fusion(cpu(), mixed, 1);
  CHECK(one.target.to_host<int64_t>() == Targets{0, 1, 1, 2, 3});
  CHECK(one.out.to_host<double>() == std::vector<double>{0, 1, 1.5, 0, 1, 3, 1, 0});
  CHECK(one.count.to_host<int64_t>() == Targets{1, 2, 1, 1});
  CHECK(ops::region_fusion(cpu(), mixed, 2).target.to_host<int64_t>() == Targets{1, 0, 0, 1, 2});
  // A zero CLS token has similarity 0: above an opposite one.
  const Tensor zero = cls_only({0, 0, 1, 0, -1, 0, 1, 0});
  CHECK(ops::region_fusion(cpu(), zero, 1).target.to_host<int64_t>() == Targets{0, 0, 1, 2});
}

TEST_CASE("region_fusion takes NaN as the least similar", "[cpu]") {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const Tensor tokens = cls_only({nan, 0, 1, 0, -1, 0, nan, 0});
  CHECK(ops::region_fusion(cpu(), tokens, 1).target.to_host<int64_t>() == std::vector<int64_t>{0, 1, 1, 2});
}

TEST_CASE("region_fusion conserves the gradient of a sum", "[cpu]") {
  // Each output is a mean, so the gradients of its sources add up to the gradient of the output.
  const Tensor tokens = normal(1, {2, 21, 5, 3});
  const auto fused = ops::region_fusion(cpu(), tokens, 8);
  const Tensor dout = normal(2, fused.out.shape());
  const Tensor dtokens = ops::region_fusion_grad(cpu(), dout, fused.target, fused.count);
  double out_sum = 0.0, in_sum = 0.0;
  for (const double value : dout.to_host<double>()) out_sum += value;
  for (const double value : dtokens.to_host<double>()) in_sum += value;
  CHECK(std::abs(out_sum - in_sum) < 1e-10);
}

TEST_CASE("region_fusion in cpu float equals cpu double", "[cpu]") {
  const Tensor tokens = normal(1, {2, 31, 9, 7}, 1.0, DType::f32);
  const auto narrow = ops::region_fusion(cpu(), on(cpu(), tokens, DType::f32), 9);
  const auto wide = ops::region_fusion(cpu(), tokens, 9);
  CHECK(narrow.target.to_host<int64_t>() == wide.target.to_host<int64_t>());
  check_close(narrow.out, wide.out, tolerance(DType::f32));
}

TEST_CASE("region_fusion names what does not match", "[cpu]") {
  CHECK_THROWS_AS(ops::region_fusion(cpu(), normal(1, {1, 5, 3, 2}), 3), ShapeError);
  CHECK_THROWS_AS(ops::region_fusion(cpu(), normal(1, {1, 5, 3, 2}), -1), ShapeError);
  CHECK_THROWS_AS(ops::region_fusion(cpu(), normal(1, {5, 3, 2}), 1), ShapeError);
  CHECK_THROWS_AS(ops::region_fusion(cpu(), normal(1, {1, 5, 0, 2}), 1), ShapeError);
  CHECK_THROWS_AS(ops::region_fusion(cpu(), Tensor::zeros(cpu(), {1, 5, 3, 2}, DType::u8), 1), DTypeError);
  const auto fused = ops::region_fusion(cpu(), normal(1, {1, 5, 3, 2}), 1);
  CHECK_THROWS_AS(ops::region_fusion_grad(cpu(), normal(1, {1, 5, 3, 2}), fused.target, fused.count), ShapeError);
}

}  // namespace pm::test
