#include "engine/ops/scan/selective_scan.h"

#include "engine/ops/dispatch.h"
#include "engine/ops/scan/selective_scan_plan.h"

namespace pm::ops {
namespace {

constexpr int64_t kMaxState = 64;

struct Inputs {
  const Tensor &u, &delta, &A, &B, &C, &D_skip, &z, &delta_bias;
};

SelectiveScanArgs checked_args(Context& ctx, const char* op, const Inputs& in, bool reverse) {
  check_activation(ctx, op, {"u", in.u});
  check_device(ctx, op,
               {{"delta", in.delta},
                {"A", in.A},
                {"B", in.B},
                {"C", in.C},
                {"D_skip", in.D_skip},
                {"z", in.z},
                {"delta_bias", in.delta_bias}});
  check_dtype(op, in.u.dtype(), {{"delta", in.delta}, {"B", in.B}, {"C", in.C}, {"z", in.z}});
  check_dtype(op, param_dtype(in.u.dtype()), {{"A", in.A}, {"D_skip", in.D_skip}, {"delta_bias", in.delta_bias}});
  check_rank(op, {"u", in.u}, 3);
  check_rank(op, {"A", in.A}, 2);
  const int64_t batch = in.u.size(0), seq_len = in.u.size(1), d_inner = in.u.size(2), d_state = in.A.size(1);
  PM_CHECK(d_state >= 1 && d_state <= kMaxState, ShapeError, "{}: d_state must be 1 to {}, A has shape {}", op,
           kMaxState, in.A.shape().str());
  check_shape(op, {"delta", in.delta}, in.u.shape());
  check_shape(op, {"z", in.z}, in.u.shape());
  check_shape(op, {"A", in.A}, {d_inner, d_state});
  check_shape(op, {"B", in.B}, {batch, seq_len, d_state});
  check_shape(op, {"C", in.C}, {batch, seq_len, d_state});
  check_shape(op, {"D_skip", in.D_skip}, {d_inner});
  check_shape(op, {"delta_bias", in.delta_bias}, {d_inner});
  return {in.u.raw(),          in.delta.raw(), in.A.raw(), in.B.raw(), in.C.raw(), in.D_skip.raw(), in.z.raw(),
          in.delta_bias.raw(), nullptr,        batch,      seq_len,    d_inner,    d_state,         reverse,
          in.u.dtype()};
}

}  // namespace

Tensor selective_scan(Context& ctx, const Tensor& u, const Tensor& delta, const Tensor& A, const Tensor& B,
                      const Tensor& C, const Tensor& D_skip, const Tensor& z, const Tensor& delta_bias, bool reverse) {
  SelectiveScanArgs args = checked_args(ctx, "selective_scan", {u, delta, A, B, C, D_skip, z, delta_bias}, reverse);
  Tensor out = Tensor::empty(ctx, u.shape(), u.dtype());
  if (out.numel() == 0) return out;
  args.out = out.raw();
  dispatch_device(
      ctx, "selective_scan", [&] { cpu::selective_scan(args); },
      [&](auto stream) { cuda::selective_scan(args, stream); });
  return out;
}

SelectiveScanGrads selective_scan_grad(Context& ctx, const Tensor& dout, const Tensor& u, const Tensor& delta,
                                       const Tensor& A, const Tensor& B, const Tensor& C, const Tensor& D_skip,
                                       const Tensor& z, const Tensor& delta_bias, bool reverse) {
  const char* op = "selective_scan_grad";
  const SelectiveScanArgs forward = checked_args(ctx, op, {u, delta, A, B, C, D_skip, z, delta_bias}, reverse);
  check_device(ctx, op, {{"dout", dout}});
  check_dtype(op, u.dtype(), {{"dout", dout}});
  check_shape(op, {"dout", dout}, u.shape());
  // Without an element of u no kernel runs, and what sums over nothing is zero.
  const auto like = [&](const Tensor& tensor) {
    return u.numel() == 0 ? Tensor::zeros(ctx, tensor.shape(), tensor.dtype())
                          : Tensor::empty(ctx, tensor.shape(), tensor.dtype());
  };
  SelectiveScanGrads grads{like(u), like(delta), like(A), like(B), like(C), like(D_skip), like(z), like(delta_bias)};
  if (u.numel() == 0) return grads;
  const SelectiveScanGradArgs args{
      forward,        dout.raw(),     grads.du.raw(),      grads.ddelta.raw(), grads.dA.raw(),
      grads.dB.raw(), grads.dC.raw(), grads.dD_skip.raw(), grads.dz.raw(),     grads.ddelta_bias.raw()};
  count_scratch(ctx, [&](bool cpu) { return cpu ? 0 : cuda::selective_scan_grad_scratch(forward); });
  dispatch_device(
      ctx, op, [&] { cpu::selective_scan_grad(args); }, [&](auto stream) { cuda::selective_scan_grad(args, stream); });
  return grads;
}

}  // namespace pm::ops
