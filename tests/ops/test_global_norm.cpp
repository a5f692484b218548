#include <cmath>
#include <limits>

#include "engine/ops/optim/global_norm.h"
#include "tests/support/golden.h"
#include "tests/support/test.h"

namespace pm::test {
namespace {

// Tensors of ragged sizes, more of them than one launch takes.
std::vector<Tensor> many(Context& ctx, DType dtype, int64_t largest) {
  std::vector<Tensor> tensors;
  for (const int64_t n : {largest, int64_t{0}, int64_t{1}, int64_t{4095}, int64_t{4096}, int64_t{4097}, int64_t{257}}) {
    tensors.push_back(on(ctx, normal(static_cast<uint64_t>(n), {n}, 1.0, DType::f32), dtype));
  }
  for (uint64_t i = 0; i < 130; ++i)
    tensors.push_back(on(ctx, normal(i, {3, static_cast<int64_t>(i % 7)}, 1.0, DType::f32), dtype));
  return tensors;
}

double value(const Tensor& one) { return widen(one).to_host<double>()[0]; }

}  // namespace

TEST_CASE("global_norm on cuda equals cpu double", "[cuda]") {
  const int64_t largest = GENERATE(1, 100'003, 9'000'001);
  const std::vector<Tensor> tensors = many(cuda(), DType::f32, largest);
  const Tensor norm = ops::global_norm(cuda(), tensors);
  check_close(norm, ops::global_norm(cpu(), many(cpu(), DType::f64, largest)), tolerance(DType::f32));
  check_same_bits(norm, ops::global_norm(cuda(), tensors));
}

TEST_CASE("clip_by_norm on cuda equals cpu double", "[cuda]") {
  const double max_norm = GENERATE(0.5, 1e6);
  std::vector<Tensor> device = many(cuda(), DType::f32, 100'003), host = many(cpu(), DType::f64, 100'003);
  ops::clip_by_norm(cuda(), device, ops::global_norm(cuda(), device), max_norm);
  ops::clip_by_norm(cpu(), host, ops::global_norm(cpu(), host), max_norm);
  for (size_t i = 0; i < host.size(); ++i) check_close(device[i], host[i], tolerance(DType::f32));
}

TEST_CASE("global_norm of empty tensors on cuda is zero", "[cuda]") {
  std::vector<Tensor> none{Tensor::zeros(cuda(), {0}, DType::f32)};
  const Tensor norm = ops::global_norm(cuda(), none);
  CHECK(value(norm) == 0.0);
  ops::clip_by_norm(cuda(), none, norm, 1.0);
}

TEST_CASE("clip_by_norm spreads a norm that is not finite", "[cuda]") {
  std::vector<Tensor> tensors{on(cuda(), normal(1, {3}), DType::f32)};
  const Tensor nan = Tensor::from_host<float>(cuda(), {1}, {std::numeric_limits<float>::quiet_NaN()});
  ops::clip_by_norm(cuda(), tensors, nan, 1.0);
  CHECK(std::isnan(tensors[0].to_host<float>()[2]));
}

TEST_CASE("global_norm in cpu float equals cpu double", "[cpu]") {
  check_close(ops::global_norm(cpu(), many(cpu(), DType::f32, 100'003)),
              ops::global_norm(cpu(), many(cpu(), DType::f64, 100'003)), tolerance(DType::f32));
}

TEST_CASE("global_norm is the length of one long vector", "[cpu]") {
  const std::vector<Tensor> parts{Tensor::from_host<double>(cpu(), {2}, {3.0, 0.0}),
                                  Tensor::from_host<double>(cpu(), {1}, {-4.0})};
  CHECK(value(ops::global_norm(cpu(), parts)) == 5.0);
  CHECK(value(ops::global_norm(cpu(), {Tensor::zeros(cpu(), {0}, DType::f64)})) == 0.0);
}

TEST_CASE("clip_by_norm leaves short vectors and shortens long ones", "[cpu]") {
  std::vector<Tensor> tensors{normal(1, {5, 3}), normal(2, {7})};
  const std::vector<Tensor> before{tensors[0].copy_to(cpu()), tensors[1].copy_to(cpu())};
  const double length = value(ops::global_norm(cpu(), tensors));
  ops::clip_by_norm(cpu(), tensors, ops::global_norm(cpu(), tensors), 2.0 * length);
  check_same_bits(tensors[0], before[0]);
  ops::clip_by_norm(cpu(), tensors, ops::global_norm(cpu(), tensors), 0.25);
  CHECK(std::abs(value(ops::global_norm(cpu(), tensors)) - 0.25) < 1e-5);
  const Tensor nan = Tensor::from_host<double>(cpu(), {1}, {std::nan("")});
  ops::clip_by_norm(cpu(), tensors, nan, 1.0);
  CHECK(std::isnan(tensors[1].to_host<double>()[6]));
}

TEST_CASE("global_norm names what does not match", "[cpu]") {
  std::vector<Tensor> tensors{normal(1, {3})};
  CHECK_THROWS_AS(ops::global_norm(cpu(), {}), Error);
  CHECK_THROWS_AS(ops::global_norm(cpu(), {normal(1, {3}), on(cpu(), normal(1, {3}), DType::f32)}), DTypeError);
  CHECK_THROWS_AS(ops::clip_by_norm(cpu(), tensors, normal(1, {2}), 1.0), ShapeError);
  CHECK_THROWS_AS(ops::clip_by_norm(cpu(), tensors, normal(1, {1}), 0.0), Error);
}

namespace {

void check_global_norm_file(Context& ctx, DType dtype) {
  const auto golden = load_golden("global_norm.safetensors");
  std::vector<Tensor> tensors;
  for (int i = 0; i < 3; ++i) tensors.push_back(on(ctx, golden.at("tensor" + std::to_string(i)), dtype));
  const Tensor norm = ops::global_norm(ctx, tensors);
  check_close(norm, golden.at("norm"), tolerance(DType::f32), "norm");
  ops::clip_by_norm(ctx, tensors, norm, golden_item(golden, "max_norm"));
  for (size_t i = 0; i < tensors.size(); ++i) {
    check_close(tensors[i], golden.at("clipped" + std::to_string(i)), tolerance(DType::f32), "clipped");
  }
}

}  // namespace

TEST_CASE("global_norm and clip_by_norm match their golden file", "[cpu][golden]") {
  check_global_norm_file(cpu(), DType::f64);
  check_global_norm_file(cpu(), DType::f32);
}
TEST_CASE("global_norm and clip_by_norm on cuda match their golden file", "[cuda][golden]") {
  check_global_norm_file(cuda(), DType::f32);
}

}  // namespace pm::test
