#include "layers/nn/mamba_block.h"
#include "tests/support/mamba.h"

namespace pm::test {
namespace {

MambaBlock make_block(const std::vector<Variable>& v, bool divide_out = false) {
  MambaBlock block;
  static_cast<MambaParameters&>(block) = block_parameters(v);
  block.divide_out = divide_out;
  return block;
}

// The block as a network runs it.
GradFn as_run(bool recompute = false) {
  return [=](Context& ctx, const std::vector<Variable>& v) { return make_block(v)(ctx, v[0], recompute); };
}
GradFn composed(bool divide_out = false) {
  return [=](Context& ctx, const std::vector<Variable>& v) { return make_block(v, divide_out).composed(ctx, v[0]); };
}
GradFn one_operator(bool divide_out = false) {
  return [=](Context& ctx, const std::vector<Variable>& v) {
    const MambaBlock block = make_block(v, divide_out);
    return mamba_block(ctx, v[0], block, {block.norm_eps, divide_out});
  };
}

void check_same(const std::vector<Tensor>& actual, const std::vector<Tensor>& expected) {
  REQUIRE(actual.size() == expected.size());
  check_same_bits(actual[0], expected[0], "out");
  for (size_t i = 1; i < actual.size(); ++i) {
    check_same_bits(actual[i], expected[i], "gradient of " + block_value_name(i - 1));
  }
}

}  // namespace

TEST_CASE("mamba block gradient", "[cpu][grad]") {
  const BlockShape shape = GENERATE(BlockShape{1, 1, 1, 2, 1, 1, 1}, BlockShape{2, 5, 3, 6, 4, 4, 1},
                                    BlockShape{1, 11, 6, 12, 3, 2, 1}, BlockShape{1, 9, 17, 34, 2, 4, 2});
  CAPTURE(shape.str());
  GradcheckOptions options;
  options.full_limit = 60;
  options.projections = 3;
  check_gradient(composed(), block_values(shape, DType::f64), options);
}

TEST_CASE("divide_out halves the sum of both directions", "[cpu]") {
  std::vector<Variable> v;
  for (const Tensor& value : block_values(published_shape(1, 7, 3), DType::f64)) v.emplace_back(value);
  const std::vector<double> whole = composed()(cpu(), v).value().to_host<double>();
  const std::vector<double> half = composed(true)(cpu(), v).value().to_host<double>();
  const std::vector<double> tokens = v[0].value().to_host<double>();
  for (size_t i = 0; i < tokens.size(); ++i) CHECK(half[i] - tokens[i] == Approx(0.5 * (whole[i] - tokens[i])));
}

TEST_CASE("a recomputed mamba block has the bits of the plain one and leaves no node alive", "[cpu]") {
  const BlockShape shape = published_shape(2, 33, 6);
  check_same(run_block_with_gradients(cpu(), as_run(true), shape, DType::f32),
             run_block_with_gradients(cpu(), as_run(), shape, DType::f32));
  CHECK(cpu().live_nodes()->load() == 0);
}

TEST_CASE("a mamba block that recomputes keeps only its input", "[cpu]") {
  std::vector<Variable> v;
  for (const Tensor& value : block_values(published_shape(1, 33, 3), DType::f64)) v.emplace_back(value, true);
  const int64_t before = cpu().backend().memory().allocations;
  const Variable out = as_run(true)(cpu(), v);
  CHECK(cpu().backend().memory().allocations == before + 1);  // the output
}

TEST_CASE("mamba block as one operator equals the composed one", "[cpu]") {
  const BlockShape shape =
      GENERATE(published_shape(1, 1, 3), published_shape(2, 65, 3), published_shape(3, 130, 12),
               published_shape(1, 777, 6), published_shape(2, 37, 96), BlockShape{2, 21, 5, 7, 3, 2, 4});
  const bool divide_out = GENERATE(false, true);
  CAPTURE(shape.str(), divide_out);
  check_block(run_block_with_gradients(cpu(), one_operator(divide_out), shape, DType::f64),
              run_block_with_gradients(cpu(), composed(divide_out), shape, DType::f64), DType::f64);
}

TEST_CASE("mamba block as one operator on cuda equals the composed one", "[cuda][cublas]") {
  const int64_t channels = GENERATE(3, 6, 12, 24, 48, 96, 192, 384);
  const bool divide_out = channels % 4 == 0;
  const BlockShape shape = published_shape(2, 333, channels);
  CAPTURE(shape.str());
  check_block(run_block_with_gradients(cuda(), one_operator(divide_out), shape, DType::f32),
              run_block_with_gradients(cuda(), composed(divide_out), shape, DType::f32), DType::f32);
}

TEST_CASE("a mamba block on cuda runs as one operator where the kernels cover it", "[cuda][cublas]") {
  const auto dtype = GENERATE(DType::f32, DType::bf16);
  const bool recompute = GENERATE(false, true);
  // The second shape has the largest state and convolution: covered or not, the block runs.
  const BlockShape shape = GENERATE(published_shape(2, 70, 24), BlockShape{2, 70, 24, 48, 64, 8, 2});
  CAPTURE(to_string(dtype), recompute, shape.str());
  std::vector<Variable> v;
  for (const Tensor& value : block_values(shape, dtype)) {
    v.emplace_back(on(cuda(), value, v.empty() ? dtype : param_dtype(dtype)), true);
  }
  const bool one = make_block(v).one_operator(cuda(), v[0]);
  check_same(run_block_with_gradients(cuda(), as_run(recompute), shape, dtype),
             run_block_with_gradients(cuda(), one ? one_operator() : composed(), shape, dtype));
  const int64_t before = cuda().live_nodes()->load();
  const Variable out = as_run(recompute)(cuda(), v);
  if (one) CHECK(cuda().live_nodes()->load() == before + 1);  // never recomputed twice
}

namespace {

void check_composed_on_cuda(const BlockShape& shape, DType dtype, double allowed) {
  CAPTURE(shape.str());
  const std::vector<Tensor> expected = run_block_in_double(composed(), shape, dtype);
  const std::vector<Tensor> actual = run_block_with_gradients(cuda(), composed(), shape, dtype);
  for (size_t i = 0; i < expected.size(); ++i) {
    check_close(actual[i], expected[i], allowed, i == 0 ? "out" : "gradient of " + block_value_name(i - 1));
  }
  check_same(run_block_with_gradients(cuda(), composed(), shape, dtype), actual);
}

}  // namespace

TEST_CASE("composed mamba block on cuda equals cpu double", "[cuda][cublas]") {
  check_composed_on_cuda(GENERATE(published_shape(1, 1, 3), published_shape(2, 65, 3), published_shape(1, 1000, 6),
                                  published_shape(2, 50, 96), published_shape(1, 37, 384)),
                         DType::f32, 5e-5);
}

TEST_CASE("composed mamba block in bf16 on cuda equals cpu double", "[cuda][cublas]") {
  // A dozen intermediates are rounded to 8 bits one after the other, and the gradients pass them all again.
  check_composed_on_cuda(GENERATE(published_shape(2, 65, 3), published_shape(1, 1000, 6), published_shape(2, 50, 96),
                                  published_shape(1, 37, 384)),
                         DType::bf16, 6e-2);
}

}  // namespace pm::test
