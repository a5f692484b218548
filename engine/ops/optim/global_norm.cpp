#include "engine/ops/optim/global_norm.h"

#include "engine/ops/dispatch.h"

namespace pm::ops {
namespace {

void check_tensors(Context& ctx, const char* op, const std::vector<Tensor>& tensors) {
  PM_CHECK(!tensors.empty(), Error, "{}: at least one tensor is needed", op);
  for (const Tensor& tensor : tensors) {
    check_activation(ctx, op, {"tensor", tensor});
    check_dtype(op, param_dtype(tensors[0].dtype()), {{"tensor", tensor}});
  }
}

}  // namespace

Tensor global_norm(Context& ctx, const std::vector<Tensor>& tensors) {
  check_tensors(ctx, "global_norm", tensors);
  Tensor norm = Tensor::empty(ctx, {1}, tensors[0].dtype());
  GlobalNormArgs args{{}, norm.raw(), norm.dtype()};
  for (const Tensor& tensor : tensors) {
    if (tensor.numel() > 0) args.items.push_back({tensor.raw(), tensor.numel()});
  }
  dispatch_device(
      ctx, "global_norm", [&] { cpu::global_norm(args); }, [&](auto stream) { cuda::global_norm(args, stream); });
  return norm;
}

void clip_by_norm(Context& ctx, std::vector<Tensor>& tensors, const Tensor& norm, double max_norm) {
  check_tensors(ctx, "clip_by_norm", tensors);
  check_device(ctx, "clip_by_norm", {{"norm", norm}});
  check_dtype("clip_by_norm", tensors[0].dtype(), {{"norm", norm}});
  check_shape("clip_by_norm", {"norm", norm}, {1});
  PM_CHECK(max_norm > 0.0, Error, "clip_by_norm: max_norm must be positive, got {}", max_norm);
  ClipByNormArgs args{{}, norm.raw(), max_norm, norm.dtype()};
  for (Tensor& tensor : tensors) {
    if (tensor.numel() > 0) args.items.push_back({tensor.raw(), tensor.numel()});
  }
  dispatch_device(
      ctx, "clip_by_norm", [&] { cpu::clip_by_norm(args); }, [&](auto stream) { cuda::clip_by_norm(args, stream); });
}

}  // namespace pm::ops
