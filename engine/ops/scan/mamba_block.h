// One bidirectional Mamba block (Gu and Dao 2023, section 3.4; two directions and one gate as in Vim, Zhu et al. 2024,
// algorithm 1; paper equation 1), from tokens to tokens, as one operator:
//   hn   = t / sqrt(mean(t^2) + norm_eps) * norm                      over the channels
//   x, z = in_proj hn                                                 rows 0 to d_inner - 1 of in_proj give x
//   for each direction p in {forward, reverse}; reverse walks the tokens from the last to the first:
//     u        = silu(causal_conv1d(x, conv_weight_p) + conv_bias_p)
//     dt, B, C = x_proj_p u                                           dt_rank, d_state, d_state rows
//     delta    = softplus(dt_weight_p dt + dt_bias_p)                 identity above 20
//     s_i      = exp(delta_i * A_p) * s_{i-1} + delta_i * B_i * u_i,  A = -exp(A_log)
//     y_p      = <C_i, s_i> + D_skip_p * u
//   out  = out_proj((y_forward + y_reverse) * share * silu(z)) + t    share = divide_out ? 1/2 : 1
//
// Between forward and gradient nothing is kept but the tokens: the gradient computes the rest again.
//
// tokens, out, dout, dtokens: (batch, seq_len, channels), contiguous, one dtype (CPU f32, f64; CUDA f32, bf16).
// Parameters and their gradients: param_dtype(tokens), contiguous, shapes in the structs below.
// State, delta and sums are float32 on CUDA whatever the storage, but that the gradients of B and C in bf16 add terms of 11
// bits; no atomics, the same bits every run.
#pragma once
#include "engine/core/tensor.h"

namespace pm {

struct MambaDirectionArgs {
  const void* conv_weight;  // (d_inner, 1, d_conv)
  const void* conv_bias;    // (d_inner)
  const void* x_proj;       // (dt_rank + 2 * d_state, d_inner): rows of dt, then B, then C
  const void* dt_weight;    // (d_inner, dt_rank)
  const void* dt_bias;      // (d_inner)
  const void* A_log;        // (d_inner, d_state)
  const void* D_skip;       // (d_inner)
};
struct MambaDirectionGradArgs {  // each as its parameter
  void* conv_weight;
  void* conv_bias;
  void* x_proj;
  void* dt_weight;
  void* dt_bias;
  void* A_log;
  void* D_skip;
};

struct MambaBlockArgs {
  const void* tokens;               // (batch, seq_len, channels)
  const void* norm;                 // (channels)
  const void* in_proj;              // (2 * d_inner, channels): rows of x, then z
  const void* out_proj;             // (channels, d_inner)
  MambaDirectionArgs direction[2];  // forward, reverse
  void* out;                        // (batch, seq_len, channels); null in a gradient call
  int64_t batch, seq_len, channels, d_inner, d_state, d_conv, dt_rank;
  double norm_eps;
  bool divide_out;
  DType dtype;
  int64_t scratch_bytes;  // what intermediate values may take on CUDA; a call that needs more works on segments in turn
};
struct MambaBlockGradArgs {
  MambaBlockArgs forward;
  const void* dout;  // (batch, seq_len, channels)
  void* dtokens;     // (batch, seq_len, channels)
  void* norm;        // gradients, each as its parameter
  void* in_proj;
  void* out_proj;
  MambaDirectionGradArgs direction[2];
};

// Called with at least one token.
namespace cpu {
// Float values of a call come from `memory`, double ones from the heap.
void mamba_block(const MambaBlockArgs&, Backend& memory);
void mamba_block_grad(const MambaBlockGradArgs&, Backend& memory);
// Bytes that a call takes there.
int64_t mamba_block_scratch(const MambaBlockArgs&);
int64_t mamba_block_grad_scratch(const MambaBlockArgs&);
}  // namespace cpu
namespace cuda {  // which shapes the kernels cover and what they take of memory: mamba_block_plan.h
void mamba_block(const MambaBlockArgs&, Stream);
void mamba_block_grad(const MambaBlockGradArgs&, Stream);
}  // namespace cuda

namespace ops {

struct MambaDirectionWeights {  // shapes as in MambaDirectionArgs
  Tensor conv_weight, conv_bias, x_proj, dt_weight, dt_bias, A_log, D_skip;
};
struct MambaBlockWeights {  // also the gradients: same shapes and dtypes
  Tensor norm, in_proj, out_proj;
  MambaDirectionWeights direction[2];  // forward, reverse
};
struct MambaBlockOptions {
  double norm_eps = 1e-5;
  bool divide_out = false;
  // CUDA, while gradients are wanted: memory that the caller can spare for intermediate values, beside what a call takes
  // anyway. More of it means fewer segments, and fewer, longer launches.
  int64_t spare_bytes = 0;
};
struct MambaBlockGrads {
  Tensor dtokens;
  MambaBlockWeights dweights;
};

// Whether mamba_block runs for these shapes on the context's device: always on the CPU. The shapes are checked as there.
bool mamba_block_covers(Context& ctx, const Tensor& tokens, const MambaBlockWeights& weights);
// Both throw ShapeError, DTypeError or DeviceError when the tensors do not match the structs above, ShapeError on CUDA for
// shapes that the kernels do not cover. d_state is 1 to 64, d_conv 1 to 8.
Tensor mamba_block(Context& ctx, const Tensor& tokens, const MambaBlockWeights& weights,
                   const MambaBlockOptions& options);
MambaBlockGrads mamba_block_grad(Context& ctx, const Tensor& dout, const Tensor& tokens,
                                 const MambaBlockWeights& weights, const MambaBlockOptions& options);

}  // namespace ops

}  // namespace pm
