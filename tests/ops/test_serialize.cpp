#include <cmath>

#include "autograd/ops/serialize.h"
#include "tests/support/golden.h"
#include "tests/support/test.h"

namespace pm::test {
namespace {

Tensor random_pixels(Context& ctx, uint64_t seed, const Shape& shape) {
  const std::vector<double> draw = uniform(seed, shape, 0.0, 256.0).to_host<double>();
  std::vector<uint8_t> pixels;
  for (const double value : draw) pixels.push_back(static_cast<uint8_t>(value));
  return Tensor::from_host(ctx, shape, pixels);
}

// Tokens (batch, n_regions, region_len, channels) without the CLS rows.
Tensor without_cls(const Tensor& tokens) {
  const std::vector<double> values = widen(tokens).to_host<double>();
  const int64_t region_len = tokens.size(2), channels = tokens.size(3), cls = (region_len - 1) / 2;
  std::vector<double> kept;
  for (int64_t row = 0; row < tokens.shape().numel(0, 3); ++row) {
    if (row % region_len == cls) continue;
    for (int64_t c = 0; c < channels; ++c) kept.push_back(values[static_cast<size_t>(row * channels + c)]);
  }
  return Tensor::from_host(cpu(), {tokens.size(0), tokens.size(1), region_len - 1, channels}, kept);
}

struct Case {
  int64_t batch, height, width, region_size;
};

}  // namespace

TEST_CASE("serialize on cuda equals cpu double", "[cuda]") {
  const auto dtype = GENERATE(DType::f32, DType::bf16);
  const auto scan = GENERATE(ScanOrder::boustrophedon, ScanOrder::raster);
  const auto shape = GENERATE(Case{0, 4, 4, 2}, Case{1, 1, 1, 1}, Case{2, 8, 12, 4}, Case{1, 7, 9, 4},
                              Case{3, 33, 257, 16}, Case{1, 130, 611, 33}, Case{2, 100, 300, 224});
  CAPTURE(to_string(dtype), shape.batch, shape.height, shape.width, shape.region_size);
  const SerializeOptions options{shape.region_size, scan, dtype}, wide{shape.region_size, scan, DType::f64};
  const Tensor image = normal(1, {shape.batch, 3, shape.height, shape.width}, 1.0, DType::f32);
  const Tensor cls = normal(2, {1, 1, 3}, 1.0, DType::f32);
  const Tensor device_cls = on(cuda(), cls, DType::f32);

  const Tensor expected = ops::serialize(cpu(), image, cls, wide);
  check_close(ops::serialize(cuda(), on(cuda(), image, DType::f32), device_cls, options), expected, tolerance(dtype),
              "float");
  const Tensor pixels = random_pixels(cpu(), 3, {shape.batch, shape.height, shape.width, 3});
  check_close(ops::serialize(cuda(), pixels.copy_to(cuda()), device_cls, options),
              ops::serialize(cpu(), pixels, cls, wide), tolerance(dtype), "bytes");

  const Tensor dout = normal(4, expected.shape(), 1.0, dtype), device_dout = on(cuda(), dout, dtype);
  check_close(ops::deserialize(cuda(), device_dout, shape.height, shape.width, shape.region_size, scan),
              ops::deserialize(cpu(), dout, shape.height, shape.width, shape.region_size, scan), 0.0, "dimage");
  const Tensor dcls = ops::serialize_cls_grad(cuda(), device_dout);
  check_close(dcls, ops::serialize_cls_grad(cpu(), dout), tolerance(DType::f32), "dcls_token");
  check_same_bits(dcls, ops::serialize_cls_grad(cuda(), device_dout), "two runs");
}

TEST_CASE("serialize sums the CLS gradient of many regions on cuda", "[cuda]") {
  const Tensor dout = normal(4, {3, 1111, 5, 3}, 1.0, DType::f32);
  check_close(ops::serialize_cls_grad(cuda(), on(cuda(), dout, DType::f32)), ops::serialize_cls_grad(cpu(), dout),
              tolerance(DType::f32));
}

TEST_CASE("serialize matches its golden file", "[cpu][golden]") {
  const auto golden = load_golden("serialize_8x12_window4.safetensors");
  const Tensor tokens =
      ops::serialize(cpu(), golden.at("image"), normal(1, {1, 1, 3}), {4, ScanOrder::boustrophedon, DType::f64});
  check_close(without_cls(tokens), golden.at("tokens"), tolerance(DType::f64));
}

TEST_CASE("serialize on cuda matches its golden file", "[cuda][golden]") {
  const auto golden = load_golden("serialize_8x12_window4.safetensors");
  const Tensor tokens =
      ops::serialize(cuda(), on(cuda(), golden.at("image"), DType::f32), on(cuda(), normal(1, {1, 1, 3}), DType::f32),
                     {4, ScanOrder::boustrophedon, DType::f32});
  check_close(without_cls(tokens), golden.at("tokens"), tolerance(DType::f32));
}

TEST_CASE("serialize gradient", "[cpu][grad]") {
  const auto scan = GENERATE(ScanOrder::boustrophedon, ScanOrder::raster);
  const auto shape = GENERATE(Case{1, 1, 1, 1}, Case{2, 5, 7, 3}, Case{1, 4, 6, 2});
  check_gradient(
      [&](Context& c, const std::vector<Variable>& v) {
        return serialize(c, v[0], v[1], {shape.region_size, scan, DType::f64});
      },
      std::vector<Shape>{{shape.batch, 3, shape.height, shape.width}, {1, 1, 3}});
}

TEST_CASE("serialize gives pixels no gradient", "[cpu][grad]") {
  const Variable image(random_pixels(cpu(), 1, {1, 4, 4, 3})), cls(normal(2, {1, 1, 3}), true);
  const Variable tokens = serialize(cpu(), image, cls, {2, ScanOrder::boustrophedon, DType::f64});
  backward(cpu(), tokens, normal(3, tokens.shape()));
  CHECK(cls.grad().shape() == Shape{1, 1, 3});
}

TEST_CASE("serialize and deserialize are a round trip", "[cpu]") {
  const auto dtype = GENERATE(DType::f32, DType::f64);
  const auto scan = GENERATE(ScanOrder::boustrophedon, ScanOrder::raster);
  const auto shape = GENERATE(Case{2, 8, 12, 4}, Case{1, 7, 9, 4}, Case{1, 5, 3, 8}, Case{1, 30, 31, 1});
  const Tensor image = on(cpu(), normal(1, {shape.batch, 3, shape.height, shape.width}), dtype);
  const Tensor tokens =
      ops::serialize(cpu(), image, on(cpu(), normal(2, {1, 1, 3}), dtype), {shape.region_size, scan, dtype});
  check_same_bits(ops::deserialize(cpu(), tokens, shape.height, shape.width, shape.region_size, scan), image);
}

TEST_CASE("serialize walks a zigzag around the CLS token and pads with white", "[cpu]") {
  // One row of two windows of 2 x 2; the image is 2 x 3, so that the right column of the second window is padding.
  std::vector<double> pixels;
  for (int c = 0; c < 3; ++c) {
    for (int i = 0; i < 6; ++i) pixels.push_back(10.0 * c + i);
  }
  const Tensor image = Tensor::from_host(cpu(), {1, 3, 2, 3}, pixels);
  const Tensor cls = Tensor::from_host(cpu(), {1, 1, 3}, std::vector<double>{-1.0, -2.0, -3.0});
  const auto tokens = ops::serialize(cpu(), image, cls, {2, ScanOrder::boustrophedon, DType::f64}).to_host<double>();
  const double white = (1.0 - 0.485) / 0.229;
  const std::vector<double> red{0.0, 1.0, -1.0, 4.0, 3.0, 2.0, white, -1.0, white, 5.0};
  REQUIRE(tokens.size() == 3 * red.size());
  for (size_t i = 0; i < red.size(); ++i) CHECK(std::abs(tokens[3 * i] - red[i]) < 1e-12);
  CHECK(tokens[3 * 2 + 1] == -2.0);
  CHECK(tokens[3 * 3 + 2] == 24.0);
}

TEST_CASE("serialize normalises bytes", "[cpu]") {
  const Tensor pixels = Tensor::from_host(cpu(), {1, 1, 1, 3}, std::vector<uint8_t>{0, 51, 255});
  const Tensor cls = Tensor::zeros(cpu(), {1, 1, 3}, DType::f64);
  const auto tokens = ops::serialize(cpu(), pixels, cls, {1, ScanOrder::raster, DType::f64}).to_host<double>();
  REQUIRE(tokens.size() == 6);  // CLS first: index 1 / 2
  CHECK(std::abs(tokens[3] - (0.0 - 0.485) / 0.229) < 1e-12);
  CHECK(std::abs(tokens[4] - (0.2 - 0.456) / 0.224) < 1e-12);
  CHECK(std::abs(tokens[5] - (1.0 - 0.406) / 0.225) < 1e-12);
}

TEST_CASE("serialize in cpu float equals cpu double", "[cpu]") {
  const Tensor pixels = random_pixels(cpu(), 3, {2, 9, 13, 3}), cls = normal(2, {1, 1, 3}, 1.0, DType::f32);
  check_close(ops::serialize(cpu(), pixels, on(cpu(), cls, DType::f32), {4, ScanOrder::boustrophedon, DType::f32}),
              ops::serialize(cpu(), pixels, cls, {4, ScanOrder::boustrophedon, DType::f64}), tolerance(DType::f32));
  const Tensor dout = normal(5, {2, 12, 17, 3}, 1.0, DType::f32);
  check_close(ops::serialize_cls_grad(cpu(), on(cpu(), dout, DType::f32)), ops::serialize_cls_grad(cpu(), dout),
              tolerance(DType::f32));
}

TEST_CASE("serialize names what does not match", "[cpu]") {
  const Tensor image = normal(1, {1, 3, 4, 4}), cls = normal(2, {1, 1, 3});
  const auto scan = ScanOrder::boustrophedon;
  CHECK_THROWS_AS(ops::serialize(cpu(), image, cls, {0, scan, DType::f64}), ShapeError);
  CHECK_THROWS_AS(ops::serialize(cpu(), image, cls, {kMaxRegionSize + 1, scan, DType::f64}), ShapeError);
  CHECK_THROWS_AS(ops::serialize(cpu(), image, normal(2, {3}), {2, scan, DType::f64}), ShapeError);
  CHECK_THROWS_AS(ops::serialize(cpu(), normal(1, {1, 4, 4, 3}), cls, {2, scan, DType::f64}), ShapeError);
  CHECK_THROWS_AS(ops::serialize(cpu(), normal(1, {1, 3, 0, 4}), cls, {2, scan, DType::f64}), ShapeError);
  CHECK_THROWS_AS(ops::serialize(cpu(), image, cls, {2, scan, DType::f32}), DTypeError);
  CHECK_THROWS_AS(
      ops::serialize(cpu(), random_pixels(cpu(), 1, {1, 4, 4, 3}), on(cpu(), cls, DType::f32), {2, scan, DType::bf16}),
      DTypeError);
  CHECK_THROWS_AS(ops::deserialize(cpu(), normal(1, {1, 4, 5, 3}), 4, 5, 2, scan), ShapeError);
  CHECK_THROWS_AS(ops::serialize_cls_grad(cpu(), normal(1, {1, 4, 5, 2})), ShapeError);
}

}  // namespace pm::test
