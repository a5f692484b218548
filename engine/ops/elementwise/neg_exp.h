// out = -exp(x): the state matrix A from its logarithm A_log;   dx = dout * out
// every tensor: same shape, contiguous, one dtype (CPU f32, f64; CUDA f32, bf16); n = number of elements
#pragma once
#include "engine/core/tensor.h"

namespace pm {

struct NegExpArgs {
  const void* x;
  void* out;
  int64_t n;
  DType dtype;
};

struct NegExpGradArgs {
  const void* dout;
  const void* out;  // what the forward pass returned
  void* dx;
  int64_t n;
  DType dtype;
};

namespace cpu {
void neg_exp(const NegExpArgs&);
void neg_exp_grad(const NegExpGradArgs&);
}  // namespace cpu
namespace cuda {
void neg_exp(const NegExpArgs&, Stream);
void neg_exp_grad(const NegExpGradArgs&, Stream);
}  // namespace cuda

namespace ops {
// Each throws ShapeError, DTypeError or DeviceError when the tensors do not match.
Tensor neg_exp(Context& ctx, const Tensor& x);
Tensor neg_exp_grad(Context& ctx, const Tensor& dout, const Tensor& out);
}  // namespace ops

}  // namespace pm
