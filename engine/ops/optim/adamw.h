// One step of AdamW, in place (Loshchilov and Hutter, "Decoupled weight decay regularization", ICLR 2019):
//   p *= 1 - lr * weight_decay
//   m  = beta1 * m + (1 - beta1) * g;   v = beta2 * v + (1 - beta2) * g^2
//   p -= lr / (1 - beta1^step) * m / (sqrt(v) / sqrt(1 - beta2^step) + eps)
// param, grad, exp_avg (m), exp_avg_sq (v): same shape, contiguous, one dtype (CPU f32, f64; CUDA f32)
#pragma once
#include <cstdint>

#include "engine/core/tensor.h"

namespace pm {

struct AdamWStep {
  double lr = 1e-3;
  double beta1 = 0.9, beta2 = 0.999;
  double eps = 1e-8;
  double weight_decay = 0.0;
  int64_t step = 1;  // 1 for the first
};

struct AdamWArgs {
  void* param;
  const void* grad;
  void* exp_avg;
  void* exp_avg_sq;
  double decay;  // 1 - lr * weight_decay
  double beta1, beta2, eps;
  double step_size;           // lr / (1 - beta1^step)
  double inverse_sqrt_bias2;  // 1 / sqrt(1 - beta2^step)
  int64_t n;
  DType dtype;
};

namespace cpu {
void adamw(const AdamWArgs&);
}
namespace cuda {
void adamw(const AdamWArgs&, Stream);
}

namespace ops {
// Throws ShapeError, DTypeError or DeviceError when the tensors do not match, Error when step < 1.
void adamw_step(Context& ctx, Tensor& param, const Tensor& grad, Tensor& exp_avg, Tensor& exp_avg_sq,
                const AdamWStep& step);
}  // namespace ops

}  // namespace pm
