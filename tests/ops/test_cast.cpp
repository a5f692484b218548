#include "autograd/ops/cast.h"
#include "engine/ops/elementwise/cast.h"
#include "tests/support/test.h"

namespace pm::test {

TEST_CASE("cast on cuda rounds as the host does", "[cuda]") {
  const int64_t n = GENERATE(0, 1, 255, 256, 257, 100'003);
  CAPTURE(n);
  const Tensor x = normal(1, {n}, 3.0, DType::f32), wide = on(cuda(), x, DType::f32);
  const Tensor narrow = ops::cast(cuda(), wide, DType::bf16);
  check_same_bits(narrow, on(cuda(), x, DType::bf16), "f32 to bf16");
  check_same_bits(ops::cast(cuda(), narrow, DType::f32), on(cuda(), widen(narrow), DType::f32), "bf16 to f32");
}

TEST_CASE("cast on cuda sends the gradient back in the type of x", "[cuda]") {
  const Tensor x = normal(1, {257}, 1.0, DType::bf16), dout = normal(2, {257}, 1.0, DType::f32);
  const Variable leaf(on(cuda(), x, DType::bf16), true);
  backward(cuda(), cast(cuda(), leaf, DType::f32), on(cuda(), dout, DType::f32));
  check_same_bits(leaf.grad(), on(cuda(), dout, DType::bf16));
}

TEST_CASE("cast on the cpu goes between f32 and f64", "[cpu]") {
  const int64_t n = GENERATE(0, 1, 1000);
  const Tensor x = normal(1, {n}), rounded = normal(1, {n}, 1.0, DType::f32);
  const Tensor narrow = ops::cast(cpu(), x, DType::f32);
  check_same_bits(narrow, on(cpu(), x, DType::f32));
  check_same_bits(ops::cast(cpu(), narrow, DType::f64), rounded);
}

TEST_CASE("cast to its own type is the same memory", "[cpu]") {
  const Tensor x = normal(1, {3, 4});
  CHECK(ops::cast(cpu(), x, DType::f64).raw() == x.raw());
}

TEST_CASE("cast gradient", "[cpu][grad]") {
  // There and back through f32 would round away the step of a finite difference, so the gradient is followed by hand.
  const Tensor x = on(cpu(), normal(1, {5, 3}), DType::f32), dout = normal(2, {5, 3});
  const Variable leaf(x, true);
  backward(cpu(), cast(cpu(), leaf, DType::f64), dout);
  check_same_bits(leaf.grad(), on(cpu(), dout, DType::f32));
  check_gradient([](Context& c, const std::vector<Variable>& v) { return cast(c, v[0], DType::f64); },
                 std::vector<Shape>{{2, 3}});
}

TEST_CASE("cast names a type the device does not compute in", "[cpu]") {
  CHECK_THROWS_AS(ops::cast(cpu(), normal(1, {3}), DType::bf16), DTypeError);
  CHECK_THROWS_AS(ops::cast(cpu(), normal(1, {3}), DType::u8), DTypeError);
  CHECK_THROWS_AS(ops::cast(cpu(), Tensor::zeros(cpu(), {3}, DType::i64), DType::f32), DTypeError);
}

}  // namespace pm::test
