#include "engine/ops/conv/causal_conv1d.h"

#include "engine/ops/dispatch.h"

namespace pm::ops {
namespace {

void check(Context& ctx, const char* op, const Tensor& x, const Tensor& weight, const Tensor& bias) {
  check_activation(ctx, op, {"x", x});
  check_device(ctx, op, {{"weight", weight}, {"bias", bias}});
  check_dtype(op, param_dtype(x.dtype()), {{"weight", weight}, {"bias", bias}});
  check_rank(op, {"x", x}, 3);
  check_rank(op, {"weight", weight}, 3);
  const int64_t d_inner = x.size(2), d_conv = weight.size(2);
  PM_CHECK(d_inner >= 1, ShapeError, "{}: x must have at least one channel, it has shape {}", op, x.shape().str());
  PM_CHECK(1 <= d_conv && d_conv <= kMaxConvTaps, ShapeError, "{}: weight must have 1 to {} taps, it has shape {}", op,
           kMaxConvTaps, weight.shape().str());
  check_shape(op, {"weight", weight}, {d_inner, 1, d_conv});
  check_shape(op, {"bias", bias}, {d_inner});
}

}  // namespace

Tensor causal_conv1d(Context& ctx, const Tensor& x, const Tensor& weight, const Tensor& bias, bool reverse) {
  check(ctx, "causal_conv1d", x, weight, bias);
  Tensor out = Tensor::empty(ctx, x.shape(), x.dtype());
  const CausalConv1dArgs args{x.raw(),   weight.raw(), bias.raw(),     out.raw(), x.size(0),
                              x.size(1), x.size(2),    weight.size(2), reverse,   x.dtype()};
  dispatch_device(
      ctx, "causal_conv1d", [&] { cpu::causal_conv1d(args); }, [&](auto stream) { cuda::causal_conv1d(args, stream); });
  return out;
}

CausalConv1dGrads causal_conv1d_grad(Context& ctx, const Tensor& dout, const Tensor& x, const Tensor& weight,
                                     const Tensor& bias, bool reverse) {
  check(ctx, "causal_conv1d_grad", x, weight, bias);
  check_device(ctx, "causal_conv1d_grad", {{"dout", dout}});
  check_dtype("causal_conv1d_grad", x.dtype(), {{"dout", dout}});
  check_shape("causal_conv1d_grad", {"dout", dout}, x.shape());
  CausalConv1dGrads grads{Tensor::empty(ctx, x.shape(), x.dtype()), Tensor::empty(ctx, weight.shape(), weight.dtype()),
                          Tensor::empty(ctx, bias.shape(), bias.dtype())};
  const CausalConv1dGradArgs args{dout.raw(),          x.raw(),           weight.raw(), bias.raw(), grads.dx.raw(),
                                  grads.dweight.raw(), grads.dbias.raw(), x.size(0),    x.size(1),  x.size(2),
                                  weight.size(2),      reverse,           x.dtype()};
  dispatch_device(
      ctx, "causal_conv1d_grad", [&] { cpu::causal_conv1d_grad(args); },
      [&](auto stream) { cuda::causal_conv1d_grad(args, stream); });
  return grads;
}

}  // namespace pm::ops
