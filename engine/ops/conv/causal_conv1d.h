// Depthwise causal convolution along the sequence with SiLU on top:
//   pre[t] = bias + sum_k weight[k] * x[t - (d_conv - 1) + k]      x is zero before the start of the sequence
//   out[t] = silu(pre[t]),  silu(v) = v * sigmoid(v)
// per batch entry and channel. `reverse`: the same on the reversed sequence, reversed back, so taps look ahead instead.
// Gradient, with pre computed again from x and dpre = dout * sigmoid(pre) * (1 + pre * (1 - sigmoid(pre))):
//   dx[t] = sum_k weight[k] * dpre[t + (d_conv - 1) - k]           dpre is zero past the end
//   dweight[k] = sum over batch and t of dpre[t] * x[t - (d_conv - 1) + k];   dbias = sum over batch and t of dpre[t]
// Source: Gu, Dao, "Mamba: linear-time sequence modeling with selective state spaces", 2023, section 3.4.
#pragma once
#include "engine/core/tensor.h"

namespace pm {

constexpr int64_t kMaxConvTaps = 8;

struct CausalConv1dArgs {
  const void* x;       // (batch, seq_len, d_inner), contiguous, dtype
  const void* weight;  // (d_inner, 1, d_conv), param_dtype(dtype)
  const void* bias;    // (d_inner), param_dtype(dtype)
  void* out;           // (batch, seq_len, d_inner), dtype
  int64_t batch, seq_len, d_inner, d_conv;
  bool reverse;
  DType dtype;
};

struct CausalConv1dGradArgs {
  const void* dout;    // (batch, seq_len, d_inner), contiguous, dtype
  const void* x;       // (batch, seq_len, d_inner), dtype
  const void* weight;  // (d_inner, 1, d_conv), param_dtype(dtype)
  const void* bias;    // (d_inner), param_dtype(dtype)
  void* dx;            // (batch, seq_len, d_inner), dtype
  void* dweight;       // (d_inner, 1, d_conv), param_dtype(dtype)
  void* dbias;         // (d_inner), param_dtype(dtype)
  int64_t batch, seq_len, d_inner, d_conv;
  bool reverse;
  DType dtype;
};

namespace cpu {
void causal_conv1d(const CausalConv1dArgs&);
void causal_conv1d_grad(const CausalConv1dGradArgs&);
}  // namespace cpu
namespace cuda {
void causal_conv1d(const CausalConv1dArgs&, Stream);
void causal_conv1d_grad(const CausalConv1dGradArgs&, Stream);
}  // namespace cuda

namespace ops {

struct CausalConv1dGrads {
  Tensor dx;       // shape and dtype of x
  Tensor dweight;  // (d_inner, 1, d_conv), param_dtype
  Tensor dbias;    // (d_inner), param_dtype
};

// x: (batch, seq_len, d_inner), CPU f32 or f64, CUDA f32 or bf16; weight: (d_inner, 1, d_conv) with 1 to 8 taps and
// bias: (d_inner), both param_dtype of x. Throws ShapeError, DTypeError or DeviceError when they do not match.
Tensor causal_conv1d(Context& ctx, const Tensor& x, const Tensor& weight, const Tensor& bias, bool reverse);
// dout: shape and dtype of x.
CausalConv1dGrads causal_conv1d_grad(Context& ctx, const Tensor& dout, const Tensor& x, const Tensor& weight,
                                     const Tensor& bias, bool reverse);

}  // namespace ops
}  // namespace pm
