#include <cmath>

#include "engine/ops/elementwise/uniform.h"
#include "tests/support/test.h"

namespace pm::test {
namespace {

Tensor draw(Context& ctx, const Shape& shape, DType dtype, double low, double high, RngState state = {7, 3}) {
  ctx.rng().set_state(state);
  return ops::uniform(ctx, shape, dtype, low, high);
}

}  // namespace

TEST_CASE("uniform on cuda has the bits of the cpu", "[cuda]") {
  const int64_t n = GENERATE(0, 1, 3, 4, 5, 1023, 1024, 1025, 100'003);
  CAPTURE(n);
  const Tensor expected = draw(cpu(), {n}, DType::f32, -1.5, 2.25);
  check_same_bits(draw(cuda(), {n}, DType::f32, -1.5, 2.25).copy_to(cpu()), expected);
  check_same_bits(draw(cuda(), {n}, DType::bf16, -1.5, 2.25).copy_to(cpu()), on(cpu(), widen(expected), DType::bf16));
}

TEST_CASE("uniform in cpu float rounds cpu double", "[cpu]") {
  const int64_t n = GENERATE(0, 1, 1001);
  check_same_bits(draw(cpu(), {n}, DType::f32, -0.3, 0.7),
                  on(cpu(), draw(cpu(), {n}, DType::f64, -0.3, 0.7), DType::f32));
}

TEST_CASE("uniform has the mean and deviation of its law and stays in range", "[cpu]") {
  const int64_t n = 200'000;
  const std::vector<double> values = draw(cpu(), {n}, DType::f64, 2.0, 5.0).to_host<double>();
  double sum = 0.0, squares = 0.0;
  bool inside = true;
  for (const double value : values) {
    inside = inside && value > 2.0 && value < 5.0;
    sum += value;
    squares += (value - 3.5) * (value - 3.5);
  }
  CHECK(inside);
  CHECK(std::abs(sum / n - 3.5) < 0.01);  // five standard errors
  CHECK(std::abs(squares / n - 9.0 / 12.0) < 0.01);
}

TEST_CASE("uniform moves the random stream on by one draw and repeats from a saved state", "[cpu]") {
  const Tensor first = draw(cpu(), {9}, DType::f64, 0.0, 1.0, {11, 5});
  CHECK(cpu().rng().state() == RngState{11, 6});
  const std::vector<double> next = ops::uniform(cpu(), {9}, DType::f64, 0.0, 1.0).to_host<double>();
  CHECK(next != first.to_host<double>());
  check_same_bits(draw(cpu(), {3, 3}, DType::f64, 0.0, 1.0, {11, 5}).reshape({9}), first);
}

TEST_CASE("uniform names what it does not take", "[cpu]") {
  CHECK_THROWS_AS(ops::uniform(cpu(), {3}, DType::f64, 1.0, 0.0), Error);
  CHECK_THROWS_AS(ops::uniform(cpu(), {3}, DType::f64, 0.0, std::nan("")), Error);
  CHECK_THROWS_AS(ops::uniform(cpu(), {3}, DType::i64, 0.0, 1.0), DTypeError);
}

}  // namespace pm::test
