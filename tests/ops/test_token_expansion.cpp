#include <string>

#include "autograd/ops/token_expansion.h"
#include "tests/support/golden.h"
#include "tests/support/test.h"

namespace pm::test {
namespace {

constexpr Expansion kKinds[] = {Expansion::horizontal_cat, Expansion::horizontal_avg, Expansion::vertical_cat,
                                Expansion::vertical_avg};

std::string file_of(Expansion kind) {
  return std::string("token_expansion_") + (is_horizontal(kind) ? "horizontal_" : "vertical_") +
         (is_cat(kind) ? "cat" : "avg") + "_8x4.safetensors";
}

struct Case {
  int64_t batch, n_regions, region_h, region_w, channels;
};

}  // namespace

TEST_CASE("token_expansion on cuda equals cpu double", "[cuda]") {
  const auto dtype = GENERATE(DType::f32, DType::bf16);
  const auto kind = GENERATE(from_range(std::begin(kKinds), std::end(kKinds)));
  const auto pad = GENERATE(ShiftPad::replicate, ShiftPad::zero);
  const auto shape = GENERATE(Case{0, 3, 4, 4, 2}, Case{1, 0, 4, 4, 2}, Case{1, 1, 2, 2, 1}, Case{2, 3, 6, 10, 5},
                              Case{1, 2, 16, 16, 4}, Case{1, 5, 14, 26, 3}, Case{1, 3, 30, 18, 96});
  const auto scan = shape.channels == 3 ? ScanOrder::raster : ScanOrder::boustrophedon;
  CAPTURE(to_string(dtype), shape.batch, shape.n_regions, shape.region_h, shape.region_w, shape.channels);
  const auto [h, w] = std::pair{shape.region_h, shape.region_w};
  const Tensor tokens = normal(1, {shape.batch, shape.n_regions, h * w + 1, shape.channels}, 1.0, dtype);
  const Tensor expected = ops::token_expansion(cpu(), tokens, h, w, kind, pad, scan);
  const Tensor actual = ops::token_expansion(cuda(), on(cuda(), tokens, dtype), h, w, kind, pad, scan);
  check_close(actual, expected, tolerance(dtype), "out");
  check_same_bits(actual, ops::token_expansion(cuda(), on(cuda(), tokens, dtype), h, w, kind, pad, scan), "two runs");

  const Tensor dout = normal(2, expected.shape(), 1.0, dtype), device_dout = on(cuda(), dout, dtype);
  const Tensor dtokens = ops::token_expansion_grad(cuda(), device_dout, h, w, kind, pad, scan);
  check_close(dtokens, ops::token_expansion_grad(cpu(), dout, h, w, kind, pad, scan), tolerance(dtype), "dtokens");
  check_same_bits(dtokens, ops::token_expansion_grad(cuda(), device_dout, h, w, kind, pad, scan), "two runs");
}

TEST_CASE("token_expansion matches its golden file", "[cpu][golden]") {
  const auto kind = GENERATE(from_range(std::begin(kKinds), std::end(kKinds)));
  const auto golden = load_golden(file_of(kind));
  const auto scan = ScanOrder::boustrophedon;
  // The files are rounded to float32.
  check_close(ops::token_expansion(cpu(), golden.at("tokens"), 8, 4, kind, ShiftPad::replicate, scan), golden.at("out"),
              1e-6, "out");
  check_close(ops::token_expansion_grad(cpu(), golden.at("dout"), 8, 4, kind, ShiftPad::replicate, scan),
              golden.at("dtokens"), 1e-6, "dtokens");
}

TEST_CASE("token_expansion on cuda matches its golden file", "[cuda][golden]") {
  const auto kind = GENERATE(from_range(std::begin(kKinds), std::end(kKinds)));
  const auto golden = load_golden(file_of(kind));
  const auto scan = ScanOrder::boustrophedon;
  const Tensor tokens = on(cuda(), golden.at("tokens"), DType::f32), dout = on(cuda(), golden.at("dout"), DType::f32);
  check_close(ops::token_expansion(cuda(), tokens, 8, 4, kind, ShiftPad::replicate, scan), golden.at("out"),
              tolerance(DType::f32), "out");
  check_close(ops::token_expansion_grad(cuda(), dout, 8, 4, kind, ShiftPad::replicate, scan), golden.at("dtokens"),
              tolerance(DType::f32), "dtokens");
}

TEST_CASE("token_expansion gradient", "[cpu][grad]") {
  const auto kind = GENERATE(from_range(std::begin(kKinds), std::end(kKinds)));
  const auto pad = GENERATE(ShiftPad::replicate, ShiftPad::zero);
  const auto scan = GENERATE(ScanOrder::boustrophedon, ScanOrder::raster);
  const auto shape = GENERATE(Case{1, 1, 2, 2, 1}, Case{2, 2, 4, 6, 3});
  check_gradient(
      [&](Context& c, const std::vector<Variable>& v) {
        return token_expansion(c, v[0], shape.region_h, shape.region_w, kind, pad, scan);
      },
      std::vector<Shape>{{shape.batch, shape.n_regions, shape.region_h * shape.region_w + 1, shape.channels}});
}

TEST_CASE("token_expansion of a constant map is constant", "[cpu]") {
  const auto kind = GENERATE(from_range(std::begin(kKinds), std::end(kKinds)));
  const Tensor tokens = Tensor::from_host(cpu(), {1, 2, 25, 1}, std::vector<double>(50, 1.5));
  const Tensor out = ops::token_expansion(cpu(), tokens, 4, 6, kind, ShiftPad::replicate, ScanOrder::boustrophedon);
  CHECK(out.shape() == Shape{1, 2, 13, is_cat(kind) ? 2 : 1});
  for (const double value : out.to_host<double>()) CHECK(value == 1.5);
}

TEST_CASE("token_expansion halves an axis by hand", "[cpu]") {
  // A 2 x 4 map: row 0 = 0 2 4 6, row 1 = 8 10 12 14, walked 0 2 4 6 | CLS | 14 12 10 8.
  const std::vector<double> walk{0, 2, 4, 6, 100, 14, 12, 10, 8};
  const Tensor tokens = Tensor::from_host(cpu(), {1, 1, 9, 1}, walk);
  const auto zigzag = ScanOrder::boustrophedon;
  // Shift-merged rows: 0 1 3 5 and 8 9 11 13 (replicate); 4 instead of 8 (zero).
  CHECK(ops::token_expansion(cpu(), tokens, 2, 4, Expansion::horizontal_cat, ShiftPad::replicate, zigzag)
            .to_host<double>() == std::vector<double>{0, 1, 3, 5, 100, 100, 11, 13, 8, 9});
  CHECK(
      ops::token_expansion(cpu(), tokens, 2, 4, Expansion::horizontal_avg, ShiftPad::zero, zigzag).to_host<double>() ==
      std::vector<double>{0.5, 4, 100, 12, 6.5});
  // Shift-merged columns: row 0 stays, row 1 = 4 6 8 10; the new map has one row.
  CHECK(ops::token_expansion(cpu(), tokens, 2, 4, Expansion::vertical_avg, ShiftPad::replicate, zigzag)
            .to_host<double>() == std::vector<double>{2, 4, 100, 6, 8});
}

TEST_CASE("token_expansion in cpu float equals cpu double", "[cpu]") {
  const auto kind = GENERATE(from_range(std::begin(kKinds), std::end(kKinds)));
  const Tensor tokens = normal(1, {2, 3, 49, 5}, 1.0, DType::f32);
  const auto run = [&](DType dtype) {
    return ops::token_expansion(cpu(), on(cpu(), tokens, dtype), 6, 8, kind, ShiftPad::zero, ScanOrder::raster);
  };
  check_close(run(DType::f32), run(DType::f64), tolerance(DType::f32));
}

TEST_CASE("token_expansion names what does not match", "[cpu]") {
  const auto scan = ScanOrder::boustrophedon;
  const auto pad = ShiftPad::replicate;
  CHECK_THROWS_AS(ops::token_expansion(cpu(), normal(1, {1, 2, 16, 3}), 4, 4, Expansion::horizontal_cat, pad, scan),
                  ShapeError);
  CHECK_THROWS_AS(ops::token_expansion(cpu(), normal(1, {1, 2, 13, 3}), 4, 3, Expansion::horizontal_cat, pad, scan),
                  ShapeError);
  CHECK_THROWS_AS(ops::token_expansion(cpu(), normal(1, {1, 2, 13, 3}), 3, 4, Expansion::vertical_avg, pad, scan),
                  ShapeError);
  CHECK_THROWS_AS(ops::token_expansion(cpu(), normal(1, {2, 17, 3}), 4, 4, Expansion::horizontal_cat, pad, scan),
                  ShapeError);
  CHECK_THROWS_AS(ops::token_expansion_grad(cpu(), normal(1, {1, 2, 9, 3}), 4, 4, Expansion::vertical_cat, pad, scan),
                  ShapeError);
  const Tensor pixels = Tensor::zeros(cpu(), {1, 1, 5, 3}, DType::u8);
  CHECK_THROWS_AS(ops::token_expansion(cpu(), pixels, 2, 2, Expansion::vertical_cat, pad, scan), DTypeError);
}

}  // namespace pm::test
