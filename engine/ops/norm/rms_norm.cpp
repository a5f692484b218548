#include "engine/ops/norm/rms_norm.h"

#include "engine/ops/dispatch.h"

namespace pm::ops {
namespace {

// Number of channels, after checking both tensors.
int64_t check(Context& ctx, const char* op, const Tensor& x, const Tensor& weight) {
  check_activation(ctx, op, {"x", x});
  check_device(ctx, op, {{"weight", weight}});
  check_dtype(op, param_dtype(x.dtype()), {{"weight", weight}});
  PM_CHECK(x.shape().rank() >= 1 && x.size(-1) >= 1, ShapeError,
           "{}: x must have at least one channel, it has shape {}", op, x.shape().str());
  check_shape(op, {"weight", weight}, {x.size(-1)});
  return x.size(-1);
}

}  // namespace

Tensor rms_norm(Context& ctx, const Tensor& x, const Tensor& weight, double eps) {
  const int64_t channels = check(ctx, "rms_norm", x, weight);
  Tensor out = Tensor::empty(ctx, x.shape(), x.dtype());
  const RmsNormArgs args{x.raw(), weight.raw(), out.raw(), x.numel() / channels, channels, eps, x.dtype()};
  dispatch_device(
      ctx, "rms_norm", [&] { cpu::rms_norm(args); }, [&](auto stream) { cuda::rms_norm(args, stream); });
  return out;
}

RmsNormGrads rms_norm_grad(Context& ctx, const Tensor& dout, const Tensor& x, const Tensor& weight, double eps,
                           const Tensor& addend) {
  const int64_t channels = check(ctx, "rms_norm_grad", x, weight);
  check_device(ctx, "rms_norm_grad", {{"dout", dout}});
  check_dtype("rms_norm_grad", x.dtype(), {{"dout", dout}});
  check_shape("rms_norm_grad", {"dout", dout}, x.shape());
  if (addend.defined()) {
    check_device(ctx, "rms_norm_grad", {{"addend", addend}});
    check_dtype("rms_norm_grad", x.dtype(), {{"addend", addend}});
    check_shape("rms_norm_grad", {"addend", addend}, x.shape());
  }
  RmsNormGrads grads{Tensor::empty(ctx, x.shape(), x.dtype()), Tensor::empty(ctx, weight.shape(), weight.dtype())};
  const RmsNormGradArgs args{
      dout.raw(),           x.raw(),  weight.raw(), grads.dx.raw(), grads.dweight.raw(),
      x.numel() / channels, channels, eps,          x.dtype(),      addend.defined() ? addend.raw() : nullptr};
  dispatch_device(
      ctx, "rms_norm_grad", [&] { cpu::rms_norm_grad(args); }, [&](auto stream) { cuda::rms_norm_grad(args, stream); });
  return grads;
}

}  // namespace pm::ops
