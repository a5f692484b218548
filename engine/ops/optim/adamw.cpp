#include "engine/ops/optim/adamw.h"

#include "engine/ops/dispatch.h"

namespace pm::ops {
namespace {

void check_clock(Context& ctx, const char* op, const Tensor& clock) {
  check_device(ctx, op, {{"clock", clock}});
  check_dtype(op, DType::f64, {{"clock", clock}});
  check_shape(op, {"clock", clock}, {2});
}

void check_tensor(Context& ctx, const AdamWTensor& tensor, DType dtype) {
  const auto& [param, grad, exp_avg, exp_avg_sq, lr_scale, weight_decay] = tensor;
  check_activation(ctx, "adamw", {"param", param});
  check_dtype("adamw", param_dtype(dtype), {{"param", param}});
  check_device(ctx, "adamw", {{"grad", grad}, {"exp_avg", exp_avg}, {"exp_avg_sq", exp_avg_sq}});
  check_dtype("adamw", dtype, {{"grad", grad}, {"exp_avg", exp_avg}, {"exp_avg_sq", exp_avg_sq}});
  check_shape("adamw", {"grad", grad}, param.shape());
  check_shape("adamw", {"exp_avg", exp_avg}, param.shape());
  check_shape("adamw", {"exp_avg_sq", exp_avg_sq}, param.shape());
}

}  // namespace

Tensor adamw_clock(Context& ctx, int64_t steps) {
  PM_CHECK(steps >= 0, Error, "adamw: the number of steps must not be negative, got {}", steps);
  return Tensor::from_host<double>(ctx, {2}, {0.0, static_cast<double>(steps)});
}

void set_learning_rate(Context& ctx, Tensor& clock, double lr) {
  check_clock(ctx, "set_learning_rate", clock);
  const SetLearningRateArgs args{clock.data<double>(), lr};
  dispatch_device(
      ctx, "set_learning_rate", [&] { cpu::set_learning_rate(args); },
      [&](auto stream) { cuda::set_learning_rate(args, stream); });
}

void adamw_step(Context& ctx, std::vector<AdamWTensor>& tensors, Tensor& clock, const AdamWStep& step,
                const Tensor& norm) {
  check_clock(ctx, "adamw", clock);
  const DType dtype = tensors.empty() ? DType::f32 : tensors[0].param.dtype();
  for (const AdamWTensor& tensor : tensors) check_tensor(ctx, tensor, dtype);
  PM_CHECK(step.max_norm >= 0.0, Error, "adamw: max_norm must not be negative, got {}", step.max_norm);
  const bool clips = step.max_norm > 0.0 && !tensors.empty();
  if (clips) {
    check_device(ctx, "adamw", {{"norm", norm}});
    check_dtype("adamw", dtype, {{"norm", norm}});
    check_shape("adamw", {"norm", norm}, {1});
  }
  AdamWArgs args{{}, clock.data<double>(), clips ? norm.raw() : nullptr, step, dtype};
  for (AdamWTensor& t : tensors) {
    if (t.param.numel() == 0) continue;
    args.items.push_back({t.param.raw(), t.grad.raw(), t.exp_avg.raw(), t.exp_avg_sq.raw(), t.param.numel(), t.lr_scale,
                          t.weight_decay});
  }
  dispatch_device(
      ctx, "adamw", [&] { cpu::adamw(args); }, [&](auto stream) { cuda::adamw(args, stream); });
}

}  // namespace pm::ops
