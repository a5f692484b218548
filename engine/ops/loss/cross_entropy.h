// loss = mean over the batch of -sum_c target_c * log_softmax(logits)_c
// with target = (1 - label_smoothing) * targets + label_smoothing / classes.
//   dlogits = dloss / batch * (softmax(logits) * sum_c target_c - target)
// Sums run in double on every device. No gradient for the targets.
#pragma once
#include <vector>

#include "engine/core/tensor.h"

namespace pm {

struct CrossEntropyArgs {
  const void* logits;   // (batch, classes), contiguous, dtype
  const void* targets;  // (batch, classes), dtype, probabilities
  void* loss;           // (1), dtype
  int64_t batch, classes;
  double label_smoothing;
  DType dtype;
};

struct CrossEntropyGradArgs {
  const void* dloss;    // (1), dtype
  const void* logits;   // (batch, classes), dtype
  const void* targets;  // (batch, classes), dtype
  void* dlogits;        // (batch, classes), dtype
  int64_t batch, classes;
  double label_smoothing;
  DType dtype;
};

namespace cpu {
void cross_entropy(const CrossEntropyArgs&);
void cross_entropy_grad(const CrossEntropyGradArgs&);
}  // namespace cpu
namespace cuda {
void cross_entropy(const CrossEntropyArgs&, Stream);
void cross_entropy_grad(const CrossEntropyGradArgs&, Stream);
}  // namespace cuda

namespace ops {

// logits: (batch, classes), CPU f32 or f64, CUDA f32; targets: the same shape and dtype. Returns the loss of shape (1).
// Throws ShapeError (also for an empty batch or no classes), DTypeError, DeviceError, and Error unless
// 0 <= label_smoothing <= 1.
Tensor cross_entropy(Context& ctx, const Tensor& logits, const Tensor& targets, double label_smoothing);
// dloss: (1), dtype of logits. Returns dlogits.
Tensor cross_entropy_grad(Context& ctx, const Tensor& dloss, const Tensor& logits, const Tensor& targets,
                          double label_smoothing);

// (labels.size(), n_classes): 1 at each label, 0 elsewhere, on the context's device; dtype f32 or f64.
// Throws Error naming the first label outside [0, n_classes).
Tensor one_hot(Context& ctx, const std::vector<int64_t>& labels, int64_t n_classes, DType dtype);

}  // namespace ops
}  // namespace pm
