#include <cmath>

#include "engine/ops/elementwise/scaled_add.h"
#include "engine/ops/optim/global_norm.h"
#include "tests/support/golden.h"
#include "tests/support/test.h"

namespace pm::test {
namespace {

// Tensors of ragged sizes, `count` of them.
std::vector<Tensor> many(Context& ctx, DType dtype, int64_t largest, uint64_t count = 137) {
  std::vector<Tensor> tensors;
  for (const int64_t n : {largest, int64_t{0}, int64_t{1}, int64_t{4095}, int64_t{4096}, int64_t{4097}, int64_t{257}}) {
    tensors.push_back(on(ctx, normal(static_cast<uint64_t>(n), {n}, 1.0, DType::f32), dtype));
  }
  for (uint64_t i = tensors.size(); i < count; ++i)
    tensors.push_back(on(ctx, normal(i, {3, static_cast<int64_t>(i % 7)}, 1.0, DType::f32), dtype));
  return tensors;
}

double value(const Tensor& one) { return widen(one).to_host<double>()[0]; }

void check_on_cuda(int64_t largest, uint64_t count) {
  CAPTURE(largest, count);
  const std::vector<Tensor> tensors = many(cuda(), DType::f32, largest, count);
  const Tensor norm = ops::global_norm(cuda(), tensors);
  check_close(norm, ops::global_norm(cpu(), many(cpu(), DType::f64, largest, count)), tolerance(DType::f32));
  check_same_bits(norm, ops::global_norm(cuda(), tensors));
}

}  // namespace

TEST_CASE("global_norm on cuda equals cpu double", "[cuda]") { check_on_cuda(GENERATE(1, 100'003), 8); }

TEST_CASE("global_norm of many and of large tensors on cuda equals cpu double", "[cuda][slow]") {
  const int64_t largest = GENERATE(1, 9'000'001);
  check_on_cuda(largest, GENERATE(8, 520, 1100));  // some are empty: up to 512 of the others share a launch
}

TEST_CASE("global_norm of empty tensors on cuda is zero", "[cuda]") {
  CHECK(value(ops::global_norm(cuda(), {Tensor::zeros(cuda(), {0}, DType::f32)})) == 0.0);
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

TEST_CASE("global_norm multiplies by its scale", "[cpu]") {
  const std::vector<Tensor> tensors{normal(1, {5, 3}), normal(2, {7})};
  CHECK(value(ops::global_norm(cpu(), tensors, 0.25)) == 0.25 * value(ops::global_norm(cpu(), tensors)));
}

TEST_CASE("clip_factor leaves short vectors and shortens long ones", "[cpu]") {
  CHECK(clip_factor(2.0, 4.0) == 1.0);
  CHECK(clip_factor(0.0, 4.0) == 1.0);
  CHECK(std::abs(clip_factor(8.0, 2.0) - 0.25) < 1e-6);
  CHECK(std::isnan(clip_factor(std::nan(""), 1.0)));
}

TEST_CASE("global_norm names what does not match", "[cpu]") {
  CHECK_THROWS_AS(ops::global_norm(cpu(), {}), Error);
  CHECK_THROWS_AS(ops::global_norm(cpu(), {normal(1, {3})}, -1.0), Error);
  CHECK_THROWS_AS(ops::global_norm(cpu(), {normal(1, {3}), on(cpu(), normal(1, {3}), DType::f32)}), DTypeError);
}

namespace {

void check_global_norm_file(Context& ctx, DType dtype) {
  const auto golden = load_golden("global_norm.safetensors");
  std::vector<Tensor> tensors;
  for (int i = 0; i < 3; ++i) tensors.push_back(on(ctx, golden.at("tensor" + std::to_string(i)), dtype));
  const Tensor norm = ops::global_norm(ctx, tensors);
  check_close(norm, golden.at("norm"), tolerance(DType::f32), "norm");
  const double factor = clip_factor(value(norm), golden_item(golden, "max_norm"));
  for (size_t i = 0; i < tensors.size(); ++i) {
    Tensor clipped = tensors[i].copy_to(ctx);
    ops::scale_in_place(ctx, clipped, factor);
    check_close(clipped, golden.at("clipped" + std::to_string(i)), tolerance(DType::f32), "clipped");
  }
}

}  // namespace

TEST_CASE("global_norm and clip_factor match their golden file", "[cpu][golden]") {
  check_global_norm_file(cpu(), DType::f64);
  check_global_norm_file(cpu(), DType::f32);
}
TEST_CASE("global_norm and clip_factor on cuda match their golden file", "[cuda][golden]") {
  check_global_norm_file(cuda(), DType::f32);
}

}  // namespace pm::test
