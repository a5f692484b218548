// out = x / sqrt(mean(x^2) + eps) * weight, the mean over the last axis.
// Source: Zhang, Sennrich, "Root mean square layer normalization", NeurIPS 2019.
// With scale = 1 / sqrt(mean(x^2) + eps) of a row:
//   dx      = scale * weight * dout - x * scale^3 * mean(weight * dout * x) + addend
//   dweight = sum over rows of dout * x * scale
// The scale is computed again in the gradient: nothing but x and weight has to be kept. The addend, which may be left out, is
// the gradient that reaches x around the norm (a residual connection); it is added before dx is rounded.
#pragma once
#include "engine/core/tensor.h"

namespace pm {

struct RmsNormArgs {
  const void* x;       // (rows, channels), contiguous, dtype
  const void* weight;  // (channels), param_dtype(dtype)
  void* out;           // (rows, channels), dtype
  int64_t rows, channels;
  double eps;
  DType dtype;
};

struct RmsNormGradArgs {
  const void* dout;    // (rows, channels), contiguous, dtype
  const void* x;       // (rows, channels), dtype
  const void* weight;  // (channels), param_dtype(dtype)
  void* dx;            // (rows, channels), dtype
  void* dweight;       // (channels), param_dtype(dtype)
  int64_t rows, channels;
  double eps;
  DType dtype;
  const void* addend = nullptr;  // (rows, channels), dtype; null: nothing is added. May be dx, or not overlap it
};

namespace cpu {
void rms_norm(const RmsNormArgs&);
void rms_norm_grad(const RmsNormGradArgs&);
}  // namespace cpu
namespace cuda {
void rms_norm(const RmsNormArgs&, Stream);
void rms_norm_grad(const RmsNormGradArgs&, Stream);
}  // namespace cuda

namespace ops {

struct RmsNormGrads {
  Tensor dx;       // shape and dtype of x
  Tensor dweight;  // (channels), param_dtype
};

// x: (..., channels), any rank from 1, CPU f32 or f64, CUDA f32 or bf16; weight: (channels), param_dtype of x.
// Throws ShapeError, DTypeError or DeviceError when they do not match, ShapeError when channels is 0.
Tensor rms_norm(Context& ctx, const Tensor& x, const Tensor& weight, double eps);
// dout, addend: shape and dtype of x; addend may be undefined.
RmsNormGrads rms_norm_grad(Context& ctx, const Tensor& dout, const Tensor& x, const Tensor& weight, double eps,
                           const Tensor& addend = {});

}  // namespace ops
}  // namespace pm
