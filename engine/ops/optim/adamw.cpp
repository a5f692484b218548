#include "engine/ops/optim/adamw.h"

#include <cmath>

#include "engine/ops/dispatch.h"

namespace pm::ops {

void adamw_step(Context& ctx, Tensor& param, const Tensor& grad, Tensor& exp_avg, Tensor& exp_avg_sq,
                const AdamWStep& step) {
  check_activation(ctx, "adamw", {"param", param});
  check_dtype("adamw", param_dtype(param.dtype()), {{"param", param}});
  check_device(ctx, "adamw", {{"grad", grad}, {"exp_avg", exp_avg}, {"exp_avg_sq", exp_avg_sq}});
  check_dtype("adamw", param.dtype(), {{"grad", grad}, {"exp_avg", exp_avg}, {"exp_avg_sq", exp_avg_sq}});
  check_shape("adamw", {"grad", grad}, param.shape());
  check_shape("adamw", {"exp_avg", exp_avg}, param.shape());
  check_shape("adamw", {"exp_avg_sq", exp_avg_sq}, param.shape());
  PM_CHECK(step.step >= 1, Error, "adamw: steps count from 1, got {}", step.step);
  const double count = static_cast<double>(step.step);
  const AdamWArgs args{param.raw(),
                       grad.raw(),
                       exp_avg.raw(),
                       exp_avg_sq.raw(),
                       1.0 - step.lr * step.weight_decay,
                       step.beta1,
                       step.beta2,
                       step.eps,
                       step.lr / (1.0 - std::pow(step.beta1, count)),
                       1.0 / std::sqrt(1.0 - std::pow(step.beta2, count)),
                       param.numel(),
                       param.dtype()};
  dispatch_device(
      ctx, "adamw", [&] { cpu::adamw(args); }, [&](auto stream) { cuda::adamw(args, stream); });
}

}  // namespace pm::ops
