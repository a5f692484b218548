#include "autograd/ops/region_mean.h"
#include "engine/ops/token/region_mean.h"
#include "tests/support/test.h"

namespace pm::test {

TEST_CASE("region_mean on cuda equals cpu double", "[cuda]") {
  const auto dtype = GENERATE(DType::f32, DType::bf16);
  const auto shape =
      GENERATE(Shape{0, 3, 4}, Shape{2, 3, 0}, Shape{1, 1, 1}, Shape{2, 31, 33}, Shape{3, 32, 32}, Shape{2, 33, 31},
               Shape{1, 400, 384}, Shape{2, 1023, 3}, Shape{1, 1024, 5}, Shape{2, 1025, 40}, Shape{1, 5003, 7});
  CAPTURE(to_string(dtype), shape.str());
  // Away from zero: the mean of many normal values would cancel.
  const Tensor x = uniform(1, shape, 0.5, 1.5, dtype), device_x = on(cuda(), x, dtype);
  const Tensor out = ops::region_mean(cuda(), device_x);
  check_close(out, ops::region_mean(cpu(), x), tolerance(dtype), "out");
  check_same_bits(out, ops::region_mean(cuda(), device_x), "two runs");
  const Tensor dout = normal(2, {shape[0], shape[2]}, 1.0, dtype);
  check_close(ops::region_mean_grad(cuda(), on(cuda(), dout, dtype), shape[1]),
              ops::region_mean_grad(cpu(), dout, shape[1]), tolerance(dtype), "dx");
}

TEST_CASE("region_mean of very many regions on cuda", "[cuda]") {
  const Tensor x = uniform(1, {1, 1'100'000, 1}, 0.5, 1.5, DType::f32);  // more chunks than one block adds
  check_close(ops::region_mean(cuda(), on(cuda(), x, DType::f32)), ops::region_mean(cpu(), x), tolerance(DType::f32));
}

TEST_CASE("region_mean gradient", "[cpu][grad]") {
  const auto shape = GENERATE(Shape{1, 1, 1}, Shape{2, 5, 3}, Shape{3, 1, 4});
  check_gradient([](Context& c, const std::vector<Variable>& v) { return region_mean(c, v[0]); },
                 std::vector<Shape>{shape});
}

TEST_CASE("region_mean of equal regions is that region", "[cpu]") {
  const Tensor x = Tensor::from_host(cpu(), {1, 4, 2}, std::vector<double>{1, -2, 1, -2, 1, -2, 1, -2});
  CHECK(ops::region_mean(cpu(), x).to_host<double>() == std::vector<double>{1, -2});
}

TEST_CASE("region_mean in cpu float equals cpu double", "[cpu]") {
  const Tensor x = normal(1, {2, 301, 5}, 1.0, DType::f32), dout = normal(2, {2, 5}, 1.0, DType::f32);
  check_close(ops::region_mean(cpu(), on(cpu(), x, DType::f32)), ops::region_mean(cpu(), x), tolerance(DType::f32));
  check_close(ops::region_mean_grad(cpu(), on(cpu(), dout, DType::f32), 3), ops::region_mean_grad(cpu(), dout, 3),
              tolerance(DType::f32));
}

TEST_CASE("region_mean names what does not match", "[cpu]") {
  CHECK_THROWS_AS(ops::region_mean(cpu(), normal(1, {2, 0, 3})), ShapeError);
  CHECK_THROWS_AS(ops::region_mean(cpu(), normal(1, {2, 3})), ShapeError);
  CHECK_THROWS_AS(ops::region_mean(cpu(), Tensor::zeros(cpu(), {2, 3, 4}, DType::u8)), DTypeError);
  CHECK_THROWS_AS(ops::region_mean_grad(cpu(), normal(1, {2, 3}), 0), ShapeError);
}

}  // namespace pm::test
