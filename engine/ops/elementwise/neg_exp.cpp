#include "engine/ops/elementwise/neg_exp.h"

#include "engine/ops/dispatch.h"

namespace pm::ops {

Tensor neg_exp(Context& ctx, const Tensor& x) {
  check_activation(ctx, "neg_exp", {"x", x});
  Tensor out = Tensor::empty(ctx, x.shape(), x.dtype());
  const NegExpArgs args{x.raw(), out.raw(), x.numel(), x.dtype()};
  dispatch_device(
      ctx, "neg_exp", [&] { cpu::neg_exp(args); }, [&](auto stream) { cuda::neg_exp(args, stream); });
  return out;
}

Tensor neg_exp_grad(Context& ctx, const Tensor& dout, const Tensor& out) {
  check_activation(ctx, "neg_exp_grad", {"out", out});
  check_device(ctx, "neg_exp_grad", {{"dout", dout}});
  check_dtype("neg_exp_grad", out.dtype(), {{"dout", dout}});
  check_shape("neg_exp_grad", {"dout", dout}, out.shape());
  Tensor dx = Tensor::empty(ctx, out.shape(), out.dtype());
  const NegExpGradArgs args{dout.raw(), out.raw(), dx.raw(), out.numel(), out.dtype()};
  dispatch_device(
      ctx, "neg_exp_grad", [&] { cpu::neg_exp_grad(args); }, [&](auto stream) { cuda::neg_exp_grad(args, stream); });
  return dx;
}

}  // namespace pm::ops
