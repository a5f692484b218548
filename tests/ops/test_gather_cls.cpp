#include "autograd/ops/gather_cls.h"
#include "engine/ops/token/gather_cls.h"
#include "tests/support/test.h"

namespace pm::test {
namespace {

struct Case {
  int64_t batch, n_regions, region_len, channels;
};

}  // namespace

TEST_CASE("gather_cls on cuda equals cpu double", "[cuda]") {
  const auto dtype = GENERATE(DType::f32, DType::bf16);
  const auto shape = GENERATE(Case{0, 2, 3, 4}, Case{2, 0, 3, 4}, Case{1, 1, 1, 1}, Case{2, 3, 5, 31},
                              Case{3, 7, 10, 32}, Case{1, 129, 17, 33}, Case{1, 5, 9, 769});
  CAPTURE(to_string(dtype), shape.batch, shape.n_regions, shape.region_len, shape.channels);
  const Tensor tokens = normal(1, {shape.batch, shape.n_regions, shape.region_len, shape.channels}, 1.0, dtype);
  const Tensor dout = normal(2, {shape.batch, shape.n_regions, shape.channels}, 1.0, dtype);
  const Tensor out = ops::gather_cls(cuda(), on(cuda(), tokens, dtype));
  check_close(out, ops::gather_cls(cpu(), tokens), 0.0, "out");
  check_same_bits(out, ops::gather_cls(cuda(), on(cuda(), tokens, dtype)), "two runs");
  check_close(ops::gather_cls_grad(cuda(), on(cuda(), dout, dtype), shape.region_len),
              ops::gather_cls_grad(cpu(), dout, shape.region_len), 0.0, "dtokens");
}

TEST_CASE("gather_cls gradient", "[cpu][grad]") {
  const auto shape = GENERATE(Case{1, 1, 1, 1}, Case{2, 3, 5, 4}, Case{1, 2, 10, 3});
  check_gradient([](Context& c, const std::vector<Variable>& v) { return gather_cls(c, v[0]); },
                 std::vector<Shape>{{shape.batch, shape.n_regions, shape.region_len, shape.channels}});
}

TEST_CASE("gather_cls takes the middle token", "[cpu]") {
  const Tensor tokens = Tensor::from_host(cpu(), {1, 2, 3, 1}, std::vector<double>{1, 2, 3, 4, 5, 6});
  CHECK(ops::gather_cls(cpu(), tokens).to_host<double>() == std::vector<double>{2, 5});
  const Tensor even = Tensor::from_host(cpu(), {1, 1, 2, 2}, std::vector<double>{1, 2, 3, 4});  // one cell: CLS first
  CHECK(ops::gather_cls(cpu(), even).to_host<double>() == std::vector<double>{1, 2});
}

TEST_CASE("gather_cls of its gradient gives the gradient back", "[cpu]") {
  const auto dtype = GENERATE(DType::f32, DType::f64);
  const Tensor dout = on(cpu(), normal(1, {2, 3, 5}), dtype);
  check_same_bits(ops::gather_cls(cpu(), ops::gather_cls_grad(cpu(), dout, 7)), dout);
}

TEST_CASE("gather_cls names what does not match", "[cpu]") {
  CHECK_THROWS_AS(ops::gather_cls(cpu(), normal(1, {2, 3, 4})), ShapeError);
  CHECK_THROWS_AS(ops::gather_cls(cpu(), normal(1, {2, 3, 0, 4})), ShapeError);
  CHECK_THROWS_AS(ops::gather_cls(cpu(), Tensor::zeros(cpu(), {2, 3, 5, 4}, DType::i64)), DTypeError);
  CHECK_THROWS_AS(ops::gather_cls_grad(cpu(), normal(1, {2, 3, 4}), 0), ShapeError);
}

}  // namespace pm::test
