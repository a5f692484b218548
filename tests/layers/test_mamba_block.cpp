#include <cmath>

#include "autograd/core/recompute.h"
#include "layers/nn/mamba_block.h"
#include "tests/support/test.h"

namespace pm::test {
namespace {

struct BlockShape {
  int64_t batch, seq_len, channels, d_state, d_conv;
};

double inverse_root(int64_t n) { return 1.0 / std::sqrt(static_cast<double>(n)); }

// Tokens, then the parameters in the order of run_block, scaled by their fan-in so that activations stay near one.
std::vector<Tensor> block_values(const BlockShape& shape) {
  const int64_t c = shape.channels, inner = 2 * c, rank = (c + 15) / 16, n = shape.d_state;
  std::vector<Tensor> values = {normal(1, {shape.batch, shape.seq_len, c}), uniform(2, {c}, 0.5, 1.5),
                                normal(3, {2 * inner, c}, inverse_root(c)), normal(4, {c, inner}, inverse_root(inner))};
  for (uint64_t p = 0; p < 2; ++p) {
    const uint64_t seed = 10 + 10 * p;
    values.push_back(normal(seed + 0, {inner, 1, shape.d_conv}, 0.5));
    values.push_back(normal(seed + 1, {inner}, 0.2));
    values.push_back(normal(seed + 2, {rank + 2 * n, inner}, inverse_root(inner)));
    values.push_back(normal(seed + 3, {inner, rank}, inverse_root(rank)));
    values.push_back(normal(seed + 4, {inner}, 0.5));
    values.push_back(uniform(seed + 5, {inner, n}, -1.0, 1.5));
    values.push_back(normal(seed + 6, {inner}));
  }
  return values;
}

Variable run_block(Context& ctx, const std::vector<Variable>& v, bool divide_out = false) {
  MambaBlock block;
  block.norm = v[1];
  block.in_proj = v[2];
  block.out_proj = v[3];
  block.forward = {v[4], v[5], v[6], v[7], v[8], v[9], v[10]};
  block.backward = {v[11], v[12], v[13], v[14], v[15], v[16], v[17]};
  block.divide_out = divide_out;
  return block(ctx, v[0]);
}

// Output and all gradients for one random dout; tokens in `dtype`, parameters in its parameter type.
std::vector<Tensor> run_with_gradients(Context& ctx, const BlockShape& shape, DType dtype, bool recomputed = false) {
  std::vector<Variable> leaves;
  for (const Tensor& value : block_values(shape)) {
    leaves.emplace_back(on(ctx, value, leaves.empty() ? dtype : param_dtype(dtype)), true);
  }
  Variable out;
  if (recomputed) {
    const std::vector<Variable> captured = leaves;
    out = recompute(ctx,
                    [captured](Context& c, const std::vector<Variable>& inputs) {
                      std::vector<Variable> v = captured;
                      v[0] = inputs[0];
                      return run_block(c, v);
                    },
                    {leaves[0]});
  } else {
    out = run_block(ctx, leaves);
  }
  std::vector<Tensor> results = {out.value()};
  backward(ctx, out, on(ctx, normal(99, out.shape(), 1.0, dtype), dtype));
  for (const Variable& leaf : leaves) results.push_back(leaf.grad());
  return results;
}

}  // namespace

TEST_CASE("mamba block gradient", "[cpu][grad]") {
  const BlockShape shape = GENERATE(BlockShape{1, 1, 1, 1, 1}, BlockShape{2, 5, 3, 4, 4}, BlockShape{1, 11, 6, 3, 2},
                                    BlockShape{1, 9, 17, 2, 4});
  CAPTURE(shape.batch, shape.seq_len, shape.channels, shape.d_state);
  GradcheckOptions options;
  options.full_limit = 60;
  options.projections = 3;
  check_gradient([](Context& ctx, const std::vector<Variable>& v) { return run_block(ctx, v); }, block_values(shape),
                 options);
}

TEST_CASE("divide_out halves the sum of both directions", "[cpu]") {
  std::vector<Variable> v;
  for (const Tensor& value : block_values({1, 7, 3, 4, 4})) v.emplace_back(value);
  const std::vector<double> whole = run_block(cpu(), v).value().to_host<double>();
  const std::vector<double> half = run_block(cpu(), v, true).value().to_host<double>();
  const std::vector<double> tokens = v[0].value().to_host<double>();
  for (size_t i = 0; i < tokens.size(); ++i) CHECK(half[i] - tokens[i] == Approx(0.5 * (whole[i] - tokens[i])));
}

TEST_CASE("a recomputed mamba block has the bits of the plain one and leaves no node alive", "[cpu]") {
  const BlockShape shape{2, 33, 6, 16, 4};
  const std::vector<Tensor> plain = run_with_gradients(cpu(), shape, DType::f32);
  const std::vector<Tensor> again = run_with_gradients(cpu(), shape, DType::f32, true);
  for (size_t i = 0; i < plain.size(); ++i) check_same_bits(plain[i], again[i], "tensor " + std::to_string(i));
  CHECK(cpu().live_nodes()->load() == 0);
}

namespace {

void check_block_on_cuda(const BlockShape& shape, DType dtype, double allowed) {
  CAPTURE(shape.batch, shape.seq_len, shape.channels);
  const std::vector<Tensor> expected = run_with_gradients(cpu(), shape, DType::f64);
  const std::vector<Tensor> actual = run_with_gradients(cuda(), shape, dtype);
  const std::vector<Tensor> again = run_with_gradients(cuda(), shape, dtype);
  for (size_t i = 0; i < expected.size(); ++i) {
    check_close(actual[i], expected[i], allowed, "tensor " + std::to_string(i));
    check_same_bits(actual[i], again[i], "tensor " + std::to_string(i));
  }
}

}  // namespace

TEST_CASE("mamba block on cuda equals cpu double", "[cuda]") {
  check_block_on_cuda(GENERATE(BlockShape{1, 1, 3, 16, 4}, BlockShape{2, 65, 3, 16, 4}, BlockShape{1, 1000, 6, 16, 4},
                               BlockShape{2, 50, 96, 16, 4}, BlockShape{1, 37, 384, 16, 4}),
                      DType::f32, 5e-5);
}

TEST_CASE("mamba block in bf16 on cuda equals cpu double", "[cuda]") {
  // A dozen intermediates are rounded to 8 bits one after the other, and the gradients pass them all again.
  check_block_on_cuda(GENERATE(BlockShape{2, 65, 3, 16, 4}, BlockShape{1, 1000, 6, 16, 4}, BlockShape{2, 50, 96, 16, 4},
                               BlockShape{1, 37, 384, 16, 4}),
                      DType::bf16, 6e-2);
}

}  // namespace pm::test
