// Negative log likelihood of discrete survival times, the mean over the batch.
// With hazard h(j) = sigmoid(logit(j)) and survival S(j) = prod_{i<=j} (1 - h(i)), S(-1) = 1, an entry's loss is
//   censored:    -log S(bin)                           it lived at least through its bin
//   uncensored:  -log S(bin - 1) - log h(bin)          it died in its bin
// Each logarithm's argument is raised to at least 1e-7; where that happens its gradient is zero. Else, per entry,
//   -log S(k): dlogit(j) = h(j) for j <= k;    -log h(k): dlogit(k) = h(k) - 1.
// Everything runs in double on every device. Source: Zadeh, Schmid, "Bias in cross-entropy-based training of deep survival
// networks", IEEE TPAMI 2021.
#pragma once
#include "engine/core/tensor.h"

namespace pm {

constexpr double kSurvivalFloor = 1e-7;

struct SurvivalNllArgs {
  const void* logits;       // (batch, n_bins), contiguous, dtype
  const int64_t* bin;       // (batch), in [0, n_bins)
  const int64_t* censored;  // (batch), 1 where the time is only a lower bound, else 0
  void* loss;               // (1), dtype
  int64_t batch, n_bins;
  DType dtype;
};

struct SurvivalNllGradArgs {
  const void* dloss;        // (1), dtype
  const void* logits;       // (batch, n_bins), dtype
  const int64_t* bin;       // (batch)
  const int64_t* censored;  // (batch)
  void* dlogits;            // (batch, n_bins), dtype
  int64_t batch, n_bins;
  DType dtype;
};

namespace cpu {
void survival_nll(const SurvivalNllArgs&);
void survival_nll_grad(const SurvivalNllGradArgs&);
}  // namespace cpu
namespace cuda {
void survival_nll(const SurvivalNllArgs&, Stream);
void survival_nll_grad(const SurvivalNllGradArgs&, Stream);
}  // namespace cuda

namespace ops {

// logits: (batch, n_bins), CPU f32 or f64, CUDA f32; bin and censored: (batch) i64 on the same device. Returns the loss of
// shape (1). Throws ShapeError (also for an empty batch or no bins), DTypeError, DeviceError. A bin outside [0, n_bins) or a
// flag other than 0 and 1 throws Error on the CPU; on CUDA, where throwing would mean waiting, it makes the loss NaN and the
// entry's gradient NaN.
Tensor survival_nll(Context& ctx, const Tensor& logits, const Tensor& bin, const Tensor& censored);
// dloss: (1), dtype of logits. Returns dlogits.
Tensor survival_nll_grad(Context& ctx, const Tensor& dloss, const Tensor& logits, const Tensor& bin,
                         const Tensor& censored);

}  // namespace ops
}  // namespace pm
