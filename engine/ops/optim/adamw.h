// One step of AdamW over many tensors, in place (Loshchilov and Hutter, "Decoupled weight decay regularization", ICLR 2019).
// With the step number t = clock.steps + 1, rate = clock.lr * lr_scale of the tensor and the factor f below, for each tensor:
//   g  = f * grad
//   p *= 1 - rate * weight_decay
//   m  = beta1 * m + (1 - beta1) * g;   v = beta2 * v + (1 - beta2) * g^2
//   p -= rate / (1 - beta1^t) * m / (sqrt(v) / sqrt(1 - beta2^t) + eps)
// and clock.steps becomes t.
//   f  = grad_scale * min(1, max_norm / (norm + 1e-6)) with clipping, grad_scale without; a norm of NaN makes the parameters NaN,
//        so that a broken step shows itself
//
// clock: (2) f64, learning rate and steps made. It lives on the device, so that a captured step (Backend::capture) follows
// a schedule and counts on: nothing that changes from step to step is an argument.
// param, grad, exp_avg (m), exp_avg_sq (v) of a tensor: same shape, contiguous; one dtype for all (CPU f32, f64; CUDA f32)
// norm: (1), the norm after grad_scale, as ops::global_norm gives it; the same dtype; never read by the host
#pragma once
#include <cstdint>
#include <vector>

#include "engine/core/tensor.h"

namespace pm {

struct AdamWStep {
  double beta1 = 0.9, beta2 = 0.999;
  double eps = 1e-8;
  double grad_scale = 1.0;
  double max_norm = 0.0;  // 0: no clipping
};

// One tensor of a step, with its own factor of the learning rate and its own weight decay.
struct AdamWTensor {
  Tensor param, grad, exp_avg, exp_avg_sq;
  double lr_scale = 1.0;
  double weight_decay = 0.0;
};

struct AdamWArgs {
  struct Item {
    void* param;
    const void* grad;
    void* exp_avg;
    void* exp_avg_sq;
    int64_t n;  // never 0
    double lr_scale, weight_decay;
  };
  std::vector<Item> items;
  double* clock;     // (2): learning rate, steps made
  const void* norm;  // one element; null without clipping
  AdamWStep step;
  DType dtype;
};
struct SetLearningRateArgs {
  double* clock;
  double lr;
};

namespace cpu {
void adamw(const AdamWArgs&);
void set_learning_rate(const SetLearningRateArgs&);
}  // namespace cpu
namespace cuda {
void adamw(const AdamWArgs&, Stream);
void set_learning_rate(const SetLearningRateArgs&, Stream);
}  // namespace cuda

namespace ops {
// A clock at `steps` steps and learning rate 0.
Tensor adamw_clock(Context& ctx, int64_t steps = 0);
// In the order of the device's work, without waiting for it.
void set_learning_rate(Context& ctx, Tensor& clock, double lr);
// Without tensors only the clock moves. norm may be undefined when step.max_norm is 0. Throws ShapeError, DTypeError or
// DeviceError when the tensors do not match.
void adamw_step(Context& ctx, std::vector<AdamWTensor>& tensors, Tensor& clock, const AdamWStep& step,
                const Tensor& norm = {});
}  // namespace ops

}  // namespace pm
