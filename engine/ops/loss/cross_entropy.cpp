#include "engine/ops/loss/cross_entropy.h"

#include "engine/ops/dispatch.h"

namespace pm::ops {
namespace {

void check(Context& ctx, const char* op, const Tensor& logits, const Tensor& targets, double label_smoothing) {
  check_activation(ctx, op, {"logits", logits});
  check_dtype(op, param_dtype(logits.dtype()), {{"logits", logits}});
  check_device(ctx, op, {{"targets", targets}});
  check_dtype(op, logits.dtype(), {{"targets", targets}});
  check_rank(op, {"logits", logits}, 2);
  PM_CHECK(logits.numel() > 0, ShapeError, "{}: logits must hold at least one row and one class, they have shape {}",
           op, logits.shape().str());
  check_shape(op, {"targets", targets}, logits.shape());
  PM_CHECK(0.0 <= label_smoothing && label_smoothing <= 1.0, Error, "{}: label_smoothing must be in [0, 1], it is {}",
           op, label_smoothing);
}

template <typename T>
Tensor one_hot_of(Context& ctx, const std::vector<int64_t>& labels, int64_t n_classes) {
  const int64_t batch = static_cast<int64_t>(labels.size());
  std::vector<T> values(static_cast<size_t>(batch * n_classes), T{0});
  for (int64_t i = 0; i < batch; ++i)
    values[static_cast<size_t>(i * n_classes + labels[static_cast<size_t>(i)])] = T{1};
  return Tensor::from_host(ctx, {batch, n_classes}, values);
}

}  // namespace

Tensor cross_entropy(Context& ctx, const Tensor& logits, const Tensor& targets, double label_smoothing) {
  check(ctx, "cross_entropy", logits, targets, label_smoothing);
  Tensor loss = Tensor::empty(ctx, {1}, logits.dtype());
  const CrossEntropyArgs args{logits.raw(),   targets.raw(),   loss.raw(),    logits.size(0),
                              logits.size(1), label_smoothing, logits.dtype()};
  dispatch_device(
      ctx, "cross_entropy", [&] { cpu::cross_entropy(args); }, [&](auto stream) { cuda::cross_entropy(args, stream); });
  return loss;
}

Tensor cross_entropy_grad(Context& ctx, const Tensor& dloss, const Tensor& logits, const Tensor& targets,
                          double label_smoothing) {
  check(ctx, "cross_entropy_grad", logits, targets, label_smoothing);
  check_device(ctx, "cross_entropy_grad", {{"dloss", dloss}});
  check_dtype("cross_entropy_grad", logits.dtype(), {{"dloss", dloss}});
  check_shape("cross_entropy_grad", {"dloss", dloss}, {1});
  Tensor dlogits = Tensor::empty(ctx, logits.shape(), logits.dtype());
  const CrossEntropyGradArgs args{dloss.raw(),    logits.raw(),   targets.raw(),   dlogits.raw(),
                                  logits.size(0), logits.size(1), label_smoothing, logits.dtype()};
  dispatch_device(
      ctx, "cross_entropy_grad", [&] { cpu::cross_entropy_grad(args); },
      [&](auto stream) { cuda::cross_entropy_grad(args, stream); });
  return dlogits;
}

Tensor one_hot(Context& ctx, const std::vector<int64_t>& labels, int64_t n_classes, DType dtype) {
  PM_CHECK(n_classes >= 1, Error, "one_hot: n_classes must be at least 1, it is {}", n_classes);
  for (size_t i = 0; i < labels.size(); ++i) {
    PM_CHECK(0 <= labels[i] && labels[i] < n_classes, Error, "one_hot: label {} at index {} is outside [0, {})",
             labels[i], i, n_classes);
  }
  PM_CHECK(dtype == DType::f32 || dtype == DType::f64, DTypeError, "one_hot: dtype must be f32 or f64, it is {}",
           to_string(dtype));
  return dtype == DType::f32 ? one_hot_of<float>(ctx, labels, n_classes) : one_hot_of<double>(ctx, labels, n_classes);
}

}  // namespace pm::ops
