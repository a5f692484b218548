#include <cmath>

#include "autograd/ops/neg_exp.h"
#include "engine/ops/elementwise/neg_exp.h"
#include "tests/support/golden.h"
#include "tests/support/test.h"

namespace pm::test {

TEST_CASE("neg_exp on cuda equals cpu double", "[cuda]") {
  const auto dtype = GENERATE(DType::f32, DType::bf16);
  const int64_t n = GENERATE(0, 1, 255, 256, 257, 100'003);
  CAPTURE(to_string(dtype), n);
  const Tensor x = normal(1, {n}, 2.0, dtype), dout = normal(2, {n}, 1.0, dtype), out = normal(3, {n}, 1.0, dtype);
  check_close(ops::neg_exp(cuda(), on(cuda(), x, dtype)), ops::neg_exp(cpu(), x), tolerance(dtype), "out");
  check_close(ops::neg_exp_grad(cuda(), on(cuda(), dout, dtype), on(cuda(), out, dtype)),
              ops::neg_exp_grad(cpu(), dout, out), tolerance(dtype), "dx");
}

TEST_CASE("neg_exp in cpu float equals cpu double", "[cpu]") {
  const int64_t n = GENERATE(0, 1, 1000);
  const Tensor x = normal(1, {n}, 2.0, DType::f32), dout = normal(2, {n}, 1.0, DType::f32);
  const Tensor narrow = on(cpu(), x, DType::f32);
  check_close(ops::neg_exp(cpu(), narrow), ops::neg_exp(cpu(), x), tolerance(DType::f32));
  check_close(ops::neg_exp_grad(cpu(), on(cpu(), dout, DType::f32), narrow), ops::neg_exp_grad(cpu(), dout, x),
              tolerance(DType::f32));
}

TEST_CASE("neg_exp gradient", "[cpu][grad]") {
  const auto fn = [](Context& c, const std::vector<Variable>& v) { return neg_exp(c, v[0]); };
  check_gradient(fn, std::vector<Shape>{{5, 16}});
  check_gradient(fn, std::vector<Shape>{{1}});
}

TEST_CASE("neg_exp undoes the logarithm", "[cpu]") {
  std::vector<double> logarithms, expected;
  for (int i = 1; i <= 16; ++i) {
    logarithms.push_back(std::log(i));
    expected.push_back(-i);
  }
  check_close(ops::neg_exp(cpu(), Tensor::from_host(cpu(), {16}, logarithms)), Tensor::from_host(cpu(), {16}, expected),
              1e-14);
}

TEST_CASE("neg_exp names what does not match", "[cpu]") {
  CHECK_THROWS_AS(ops::neg_exp(cpu(), on(cpu(), normal(1, {3}), DType::bf16)), DTypeError);
  CHECK_THROWS_AS(ops::neg_exp_grad(cpu(), normal(1, {3}), normal(1, {4})), ShapeError);
  CHECK_THROWS_AS(ops::neg_exp_grad(cpu(), on(cpu(), normal(1, {3}), DType::f32), normal(1, {3})), DTypeError);
}

namespace {

void check_neg_exp_files(Context& ctx, DType dtype) {
  for (const std::string file : {"neg_exp_5x16.safetensors"}) {
    check_golden_op(ctx, file, dtype, {"x"}, [](Context& c, const auto&, const auto& v) { return neg_exp(c, v[0]); });
  }
}

}  // namespace

TEST_CASE("neg_exp matches its golden files", "[cpu][golden]") {
  check_neg_exp_files(cpu(), DType::f64);
  check_neg_exp_files(cpu(), DType::f32);
}
TEST_CASE("neg_exp on cuda matches its golden files", "[cuda][golden]") { check_neg_exp_files(cuda(), DType::f32); }

}  // namespace pm::test
