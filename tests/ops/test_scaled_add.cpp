#include "autograd/ops/scaled_add.h"
#include "engine/ops/elementwise/scaled_add.h"
#include "tests/support/test.h"

namespace pm::test {

TEST_CASE("scaled_add on cuda equals cpu double", "[cuda]") {
  const auto dtype = GENERATE(DType::f32, DType::bf16);
  const int64_t n = GENERATE(0, 1, 255, 256, 257, 1'000'003);
  CAPTURE(to_string(dtype), n);
  const Tensor a = normal(1, {n}, 1.0, dtype), b = normal(2, {n}, 3.0, dtype);
  check_close(ops::scaled_add(cuda(), on(cuda(), a, dtype), 0.5, on(cuda(), b, dtype), -2.0),
              ops::scaled_add(cpu(), a, 0.5, b, -2.0), tolerance(dtype));
}

TEST_CASE("scaled_add in place on cuda equals cpu double", "[cuda]") {
  const int64_t n = 1021;
  const Tensor a = normal(1, {n}, 1.0, DType::f32), b = normal(2, {n}, 1.0, DType::f32);
  Tensor device = on(cuda(), a, DType::f32), host = a.copy_to(cpu());
  ops::add_in_place(cuda(), device, on(cuda(), b, DType::f32));
  ops::scale_in_place(cuda(), device, 3.0);
  ops::add_constant_in_place(cuda(), device, -0.25);
  ops::add_in_place(cpu(), host, b);
  ops::scale_in_place(cpu(), host, 3.0);
  ops::add_constant_in_place(cpu(), host, -0.25);
  check_close(device, host, tolerance(DType::f32));
}

TEST_CASE("scaled_add in cpu float equals cpu double", "[cpu]") {
  const int64_t n = GENERATE(0, 1, 1000);
  const Tensor a = normal(1, {n}, 1.0, DType::f32), b = normal(2, {n}, 1.0, DType::f32);
  check_close(ops::scaled_add(cpu(), on(cpu(), a, DType::f32), 0.5, on(cpu(), b, DType::f32), -2.0),
              ops::scaled_add(cpu(), a, 0.5, b, -2.0), tolerance(DType::f32));
}

TEST_CASE("scaled_add gradient", "[cpu][grad]") {
  check_gradient([](Context& c, const std::vector<Variable>& v) { return scaled_add(c, v[0], 0.5, v[1], -2.0); },
                 std::vector<Shape>{{2, 3, 5}, {2, 3, 5}});
  check_gradient([](Context& c, const std::vector<Variable>& v) { return add(c, v[0], v[0]); },
                 std::vector<Shape>{{1}});
}

TEST_CASE("scaled_add with opposite weights of one tensor is zero", "[cpu]") {
  const Tensor a = normal(1, {17});
  check_close(ops::scaled_add(cpu(), a, 1.0, a, -1.0), Tensor::zeros(cpu(), {17}, DType::f64), 0.0);
}

TEST_CASE("scaled_add names what does not match", "[cpu]") {
  CHECK_THROWS_AS(ops::scaled_add(cpu(), normal(1, {3}), 1.0, normal(1, {4}), 1.0), ShapeError);
  CHECK_THROWS_AS(ops::scaled_add(cpu(), normal(1, {3}), 1.0, on(cpu(), normal(1, {3}), DType::f32), 1.0), DTypeError);
}

}  // namespace pm::test
