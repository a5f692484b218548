#include "engine/ops/optim/global_norm.h"

#include "engine/ops/dispatch.h"

namespace pm::ops {

Tensor global_norm(Context& ctx, const std::vector<Tensor>& tensors, double scale) {
  PM_CHECK(!tensors.empty(), Error, "global_norm: at least one tensor is needed");
  PM_CHECK(scale >= 0.0, Error, "global_norm: scale must not be negative, got {}", scale);
  for (const Tensor& tensor : tensors) {
    check_activation(ctx, "global_norm", {"tensor", tensor});
    check_dtype("global_norm", param_dtype(tensors[0].dtype()), {{"tensor", tensor}});
  }
  Tensor norm = Tensor::empty(ctx, {1}, tensors[0].dtype());
  GlobalNormArgs args{{}, scale, norm.raw(), norm.dtype()};
  for (const Tensor& tensor : tensors) {
    if (tensor.numel() > 0) args.items.push_back({tensor.raw(), tensor.numel()});
  }
  dispatch_device(
      ctx, "global_norm", [&] { cpu::global_norm(args); }, [&](auto stream) { cuda::global_norm(args, stream); });
  return norm;
}

}  // namespace pm::ops
