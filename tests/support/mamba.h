// Mamba blocks for tests: shapes, parameters, and a run of any implementation with all its gradients.
#pragma once
#include <string>
#include <vector>

#include "autograd/ops/mamba_block.h"
#include "tests/support/test.h"

namespace pm::test {

struct BlockShape {
  int64_t batch, seq_len, channels, d_inner, d_state, d_conv, dt_rank;
  std::string str() const;
};
// As in the published models: expand 2, d_state 16, d_conv 4, dt_rank a sixteenth of the channels, rounded up.
BlockShape published_shape(int64_t batch, int64_t seq_len, int64_t channels);

// Tokens, norm, in_proj, out_proj, then conv_weight, conv_bias, x_proj, dt_weight, dt_bias, A_log and D_skip of the forward
// and of the reverse direction.
constexpr size_t kBlockValues = 18;
const std::string& block_value_name(size_t index);

// CPU f64 values rounded to `dtype` (parameters to its parameter type). Matrices are scaled by their fan-in, so that
// activations stay near one; delta runs from a hundredth to one and A from -0.4 to -16, so that some states forget at once
// and some remember hundreds of tokens.
std::vector<Tensor> block_values(const BlockShape& shape, DType dtype);
// v in the order of block_values; v[0], the tokens, is not part of it.
MambaParameters block_parameters(const std::vector<Variable>& v);

// Runs fn on block_values and returns its output and the gradient of every value for one random dout.
std::vector<Tensor> run_block_with_gradients(Context& ctx, const GradFn& fn, const BlockShape& shape, DType dtype);
// The same numbers, rounded to `dtype`, computed by fn in double on the CPU.
std::vector<Tensor> run_block_in_double(const GradFn& fn, const BlockShape& shape, DType dtype);
// Compares two such results. The output must agree to tolerance(dtype); gradients have passed every product of the block
// twice: 5e-5 in f32, 6e-2 in bf16, where a dozen intermediate values may be rounded to 8 bits one after the other.
void check_block(const std::vector<Tensor>& actual, const std::vector<Tensor>& expected, DType dtype);

// (batch, seq_len, channels) with the tokens in opposite order, CPU f64.
Tensor flipped_tokens(const Tensor& tensor);

}  // namespace pm::test
