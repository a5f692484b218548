// Selective scan of one direction of a Mamba block (Gu and Dao 2023, "Mamba: linear-time sequence modeling with
// selective state spaces", section 3; the gate is Vim's), for every batch and channel, per state n:
//   delta_i = softplus(raw_i + delta_bias)                           identity above 20
//   s_i[n]  = exp(delta_i * A[n]) * s_{i-1}[n] + delta_i * B_i[n] * u_i,   s_{-1} = 0
//   y_i     = sum_n C_i[n] * s_i[n] + D_skip * u_i
//   out_i   = y_i * silu(z_i)
// reverse walks the tokens from the last to the first: the scan of the flipped sequence, flipped back, without copies.
//
// Gradient, with g_i = dout_i * silu(z_i) and h_i[n] = C_i[n] * g_i + exp(delta_{i+1} * A[n]) * h_{i+1}[n]:
//   dz = dout * y * silu'(z)           dC_i[n] = sum over channels of g_i * s_i[n]
//   dD_skip = sum of g * u             dB_i[n] = sum over channels of h_i[n] * delta_i * u_i
//   du_i = D_skip * g_i + delta_i * sum_n h_i[n] * B_i[n]
//   dA[n] = sum of h_i[n] * delta_i * exp(delta_i * A[n]) * s_{i-1}[n]
//   ddelta_i = sigmoid(raw_i + delta_bias) * sum_n h_i[n] * (A[n] * exp(delta_i * A[n]) * s_{i-1}[n] + B_i[n] * u_i)
//   ddelta_bias = sum of ddelta
// ddelta is the gradient of the raw value, before bias and softplus.
//
// u, delta, z, out: (batch, seq_len, d_inner); B, C: (batch, seq_len, d_state): one dtype (CPU f32, f64; CUDA f32,
// bf16).
// A: (d_inner, d_state), negative; D_skip, delta_bias: (d_inner): param_dtype of the activations. All contiguous.
// d_state 1 to 64. The state, delta and all sums are float32 on CUDA whatever the storage; no atomics, same bits every
// run.
#pragma once
#include "engine/core/tensor.h"

namespace pm {

struct SelectiveScanArgs {
  const void* u;           // (batch, seq_len, d_inner)
  const void* delta;       // (batch, seq_len, d_inner), raw
  const void* A;           // (d_inner, d_state)
  const void* B;           // (batch, seq_len, d_state)
  const void* C;           // (batch, seq_len, d_state)
  const void* D_skip;      // (d_inner)
  const void* z;           // (batch, seq_len, d_inner)
  const void* delta_bias;  // (d_inner)
  void* out;               // (batch, seq_len, d_inner); null in a gradient call
  int64_t batch, seq_len, d_inner, d_state;
  bool reverse;
  DType dtype;
};

struct SelectiveScanGradArgs {
  SelectiveScanArgs forward;
  const void* dout;   // (batch, seq_len, d_inner)
  void* du;           // (batch, seq_len, d_inner)
  void* ddelta;       // (batch, seq_len, d_inner)
  void* dA;           // (d_inner, d_state)
  void* dB;           // (batch, seq_len, d_state)
  void* dC;           // (batch, seq_len, d_state)
  void* dD_skip;      // (d_inner)
  void* dz;           // (batch, seq_len, d_inner)
  void* ddelta_bias;  // (d_inner)
};

// Called with at least one element of u.
namespace cpu {
void selective_scan(const SelectiveScanArgs&);
void selective_scan_grad(const SelectiveScanGradArgs&);
}  // namespace cpu
namespace cuda {
void selective_scan(const SelectiveScanArgs&, Stream);
void selective_scan_grad(const SelectiveScanGradArgs&, Stream);
}  // namespace cuda

namespace ops {

struct SelectiveScanGrads {
  Tensor du, ddelta, dA, dB, dC, dD_skip, dz, ddelta_bias;  // each of the shape and dtype of its tensor
};

// Both throw ShapeError, DTypeError or DeviceError when the tensors do not match the table above.
Tensor selective_scan(Context& ctx, const Tensor& u, const Tensor& delta, const Tensor& A, const Tensor& B,
                      const Tensor& C, const Tensor& D_skip, const Tensor& z, const Tensor& delta_bias, bool reverse);
SelectiveScanGrads selective_scan_grad(Context& ctx, const Tensor& dout, const Tensor& u, const Tensor& delta,
                                       const Tensor& A, const Tensor& B, const Tensor& C, const Tensor& D_skip,
                                       const Tensor& z, const Tensor& delta_bias, bool reverse);

}  // namespace ops

}  // namespace pm
