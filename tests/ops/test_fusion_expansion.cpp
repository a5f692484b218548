#include <string>

#include "autograd/ops/fusion_expansion.h"
#include "autograd/ops/token_expansion.h"
#include "tests/support/golden.h"
#include "tests/support/test.h"

namespace pm::test {
namespace {

constexpr Expansion kKinds[] = {Expansion::horizontal_cat, Expansion::horizontal_avg, Expansion::vertical_cat,
                                Expansion::vertical_avg};
constexpr auto kZigzag = ScanOrder::boustrophedon;
constexpr auto kReplicate = ShiftPad::replicate;

struct Case {
  int64_t batch, n_regions, region_h, region_w, channels, k;

  Shape shape() const { return {batch, n_regions, region_h * region_w + 1, channels}; }
};

}  // namespace

TEST_CASE("fusion_expansion on cuda equals cpu double", "[cuda]") {
  const auto dtype = GENERATE(DType::f32, DType::bf16);
  const auto kind = GENERATE(from_range(std::begin(kKinds), std::end(kKinds)));
  // Channels that fill packs of 1, 2 and 4; regions of less than a tile, of several, and of one value more than a tile.
  const auto shape =
      GENERATE(Case{0, 4, 4, 4, 2, 1}, Case{2, 0, 4, 4, 2, 0}, Case{1, 1, 2, 2, 1, 0}, Case{3, 3, 6, 10, 5, 1},
               Case{2, 33, 2, 4, 6, 16}, Case{1, 131, 16, 16, 3, 31}, Case{2, 8, 32, 32, 3, 4},
               Case{1, 12, 14, 26, 12, 5}, Case{1, 5, 30, 18, 96, 2}, Case{1, 1030, 2, 2, 4, 515});
  const auto pad = shape.batch == 2 ? ShiftPad::zero : kReplicate;
  const auto scan = shape.channels == 12 ? ScanOrder::raster : kZigzag;
  CAPTURE(to_string(dtype), static_cast<int>(kind), shape.batch, shape.n_regions, shape.region_h, shape.region_w,
          shape.channels);
  const auto [h, w] = std::pair{shape.region_h, shape.region_w};
  const Tensor tokens = normal(1, shape.shape(), 1.0, dtype), device_tokens = on(cuda(), tokens, dtype);
  const auto expected = ops::fusion_expansion(cpu(), tokens, shape.k, h, w, kind, pad, scan);
  const auto actual = ops::fusion_expansion(cuda(), device_tokens, shape.k, h, w, kind, pad, scan);
  CHECK(actual.target.to_host<int64_t>() == expected.target.to_host<int64_t>());
  CHECK(actual.count.to_host<int64_t>() == expected.count.to_host<int64_t>());
  check_close(actual.out, expected.out, tolerance(dtype), "out");
  check_same_bits(actual.out, ops::fusion_expansion(cuda(), device_tokens, shape.k, h, w, kind, pad, scan).out,
                  "two runs");

  const Tensor dout = normal(2, expected.out.shape(), 1.0, dtype), device_dout = on(cuda(), dout, dtype);
  const auto gradient = [&](Context& ctx, const Tensor& upstream, const ops::RegionFusionResult& forward) {
    return ops::fusion_expansion_grad(ctx, upstream, forward.target, forward.count, h, w, kind, pad, scan);
  };
  const Tensor dtokens = gradient(cuda(), device_dout, actual);
  check_close(dtokens, gradient(cpu(), dout, expected), tolerance(dtype), "dtokens");
  check_same_bits(dtokens, gradient(cuda(), device_dout, actual), "two runs");
}

TEST_CASE("fusion_expansion on cuda equals fusion, then expansion", "[cuda]") {
  const auto kind = GENERATE(from_range(std::begin(kKinds), std::end(kKinds)));
  const Tensor tokens = on(cuda(), normal(1, {2, 21, 8 * 12 + 1, 6}), DType::f32);
  const auto fused = ops::region_fusion(cuda(), tokens, 7);
  const auto both = ops::fusion_expansion(cuda(), tokens, 7, 8, 12, kind, kReplicate, kZigzag);
  check_same_bits(both.target, fused.target);
  check_same_bits(both.out, ops::token_expansion(cuda(), fused.out, 8, 12, kind, kReplicate, kZigzag));
}

TEST_CASE("fusion_expansion equals fusion, then expansion", "[cpu]") {
  const auto kind = GENERATE(from_range(std::begin(kKinds), std::end(kKinds)));
  const auto shape = GENERATE(Case{1, 1, 2, 2, 1, 0}, Case{2, 6, 4, 6, 3, 3}, Case{1, 21, 6, 2, 5, 7});
  const auto [h, w] = std::pair{shape.region_h, shape.region_w};
  const Tensor tokens = normal(1, shape.shape());
  const auto fused = ops::region_fusion(cpu(), tokens, shape.k);
  const auto both = ops::fusion_expansion(cpu(), tokens, shape.k, h, w, kind, kReplicate, kZigzag);
  check_same_bits(both.target, fused.target, "target");
  check_same_bits(both.count, fused.count, "count");
  check_same_bits(both.out, ops::token_expansion(cpu(), fused.out, h, w, kind, kReplicate, kZigzag), "out");

  const Tensor dout = normal(2, both.out.shape());
  const Tensor dfused = ops::token_expansion_grad(cpu(), dout, h, w, kind, kReplicate, kZigzag);
  check_same_bits(ops::fusion_expansion_grad(cpu(), dout, both.target, both.count, h, w, kind, kReplicate, kZigzag),
                  ops::region_fusion_grad(cpu(), dfused, fused.target, fused.count), "dtokens");
}

TEST_CASE("fusion_expansion gradient", "[cpu][grad]") {
  const auto kind = GENERATE(from_range(std::begin(kKinds), std::end(kKinds)));
  const auto shape = GENERATE(Case{1, 1, 2, 2, 1, 0}, Case{2, 5, 2, 4, 3, 2});
  const auto pad = shape.k == 0 ? ShiftPad::zero : kReplicate;
  check_gradient(
      [&](Context& c, const std::vector<Variable>& v) {
        return fusion_expansion(c, v[0], shape.k, shape.region_h, shape.region_w, kind, pad, kZigzag).out;
      },
      std::vector<Shape>{shape.shape()});
}

TEST_CASE("fusion_expansion of equal regions is the expansion of one", "[cpu]") {
  const auto kind = GENERATE(from_range(std::begin(kKinds), std::end(kKinds)));
  const Tensor region = normal(1, {1, 1, 25, 3});
  std::vector<double> twice = region.to_host<double>();
  twice.insert(twice.end(), twice.begin(), twice.begin() + 25 * 3);
  const Tensor tokens = Tensor::from_host(cpu(), {1, 2, 25, 3}, twice);
  check_same_bits(ops::fusion_expansion(cpu(), tokens, 1, 6, 4, kind, kReplicate, kZigzag).out,
                  ops::token_expansion(cpu(), region, 6, 4, kind, kReplicate, kZigzag));
}

TEST_CASE("fusion_expansion in cpu float equals cpu double", "[cpu]") {
  const Tensor tokens = normal(1, {2, 9, 25, 5}, 1.0, DType::f32);
  const auto run = [&](DType dtype) {
    return ops::fusion_expansion(cpu(), on(cpu(), tokens, dtype), 3, 4, 6, Expansion::vertical_avg, kReplicate,
                                 kZigzag);
  };
  check_close(run(DType::f32).out, run(DType::f64).out, tolerance(DType::f32));
}

TEST_CASE("fusion_expansion names what does not match", "[cpu]") {
  const auto run = [](const Shape& shape, int64_t k, int64_t h, int64_t w) {
    return ops::fusion_expansion(cpu(), normal(1, shape), k, h, w, Expansion::horizontal_cat, kReplicate, kZigzag);
  };
  CHECK_THROWS_AS(run({1, 5, 17, 2}, 3, 4, 4), ShapeError);
  CHECK_THROWS_AS(run({1, 5, 17, 2}, -1, 4, 4), ShapeError);
  CHECK_THROWS_AS(run({1, 5, 16, 2}, 1, 4, 4), ShapeError);
  CHECK_THROWS_AS(run({1, 5, 13, 2}, 1, 4, 3), ShapeError);
  CHECK_THROWS_AS(run({5, 17, 2}, 1, 4, 4), ShapeError);
  const auto both = run({1, 5, 17, 2}, 1, 4, 4);
  const auto gradient = [&](const Shape& dout) {
    return ops::fusion_expansion_grad(cpu(), normal(1, dout), both.target, both.count, 4, 4, Expansion::horizontal_cat,
                                      kReplicate, kZigzag);
  };
  CHECK(gradient({1, 4, 9, 4}).shape() == Shape{1, 5, 17, 2});
  CHECK_THROWS_AS(gradient({1, 5, 9, 4}), ShapeError);
  CHECK_THROWS_AS(gradient({1, 4, 17, 4}), ShapeError);
  CHECK_THROWS_AS(gradient({2, 4, 9, 4}), ShapeError);
}

namespace {

// The stored fusion, followed by the expansion that has a reference of its own.
void check_fusion_files(Context& ctx, DType dtype) {
  for (const char* file : {"region_fusion_n3_k1_2x4.safetensors", "region_fusion_n15_k4_2x4.safetensors"}) {
    CAPTURE(file);
    const auto golden = load_golden(file);
    const int64_t k = golden.at("k").to_host<int64_t>().at(0);
    for (const Expansion kind : kKinds) {
      const auto both =
          ops::fusion_expansion(ctx, on(ctx, golden.at("tokens"), dtype), k, 2, 4, kind, kReplicate, kZigzag);
      check_close(both.out, ops::token_expansion(cpu(), golden.at("out"), 2, 4, kind, kReplicate, kZigzag),
                  tolerance(DType::f32), "out");
    }
  }
}

}  // namespace

TEST_CASE("fusion_expansion matches the golden files of fusion", "[cpu][golden]") {
  check_fusion_files(cpu(), DType::f64);
}
TEST_CASE("fusion_expansion on cuda matches the golden files of fusion", "[cuda][golden]") {
  check_fusion_files(cuda(), DType::f32);
}

}  // namespace pm::test
