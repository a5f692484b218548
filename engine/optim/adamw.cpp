#include "engine/optim/adamw.h"

#include <algorithm>
#include <set>

#include "engine/core/check.h"
#include "engine/ops/optim/global_norm.h"

namespace pm {

AdamW::AdamW(Context& ctx, const std::vector<ParameterGroup>& groups, const AdamWOptions& options)
    : options_(options), clock_(ops::adamw_clock(ctx)) {
  PM_CHECK(options.beta1 >= 0.0 && options.beta1 < 1.0 && options.beta2 >= 0.0 && options.beta2 < 1.0, ConfigError,
           "AdamW: betas must be in [0, 1), got {} and {}", options.beta1, options.beta2);
  PM_CHECK(options.eps > 0.0, ConfigError, "AdamW: eps must be positive, got {}", options.eps);
  std::set<std::string> names;
  for (const ParameterGroup& group : groups) {
    PM_CHECK(group.lr_scale >= 0.0 && group.weight_decay >= 0.0, ConfigError,
             "AdamW: lr_scale and weight_decay must not be negative, got {} and {}", group.lr_scale,
             group.weight_decay);
    for (const auto& [name, value] : group.parameters) {
      PM_CHECK(names.insert(name).second, ConfigError, "AdamW: two parameters are named {}", name);
      PM_CHECK(value.dtype() == param_dtype(value.dtype()), DTypeError,
               "AdamW: parameter {} must be f32 or f64, it is {}", name, to_string(value.dtype()));
      parameters_.push_back({name, value, Tensor(), Tensor::zeros(ctx, value.shape(), value.dtype()),
                             Tensor::zeros(ctx, value.shape(), value.dtype()), group.lr_scale, group.weight_decay});
    }
  }
}

OptimParameter& AdamW::parameter(const std::string& name) {
  const auto found =
      std::find_if(parameters_.begin(), parameters_.end(), [&](const OptimParameter& p) { return p.name == name; });
  PM_CHECK(found != parameters_.end(), ConfigError, "AdamW: there is no parameter named {}", name);
  return *found;
}

void AdamW::set_learning_rate(Context& ctx, double lr) { ops::set_learning_rate(ctx, clock_, lr); }

Tensor AdamW::step(Context& ctx, const GradientScaling& scaling) {
  std::vector<AdamWTensor> tensors;
  std::vector<Tensor> grads;
  for (const OptimParameter& parameter : parameters_) {
    if (!parameter.grad.defined()) continue;
    PM_CHECK(parameter.grad.shape() == parameter.value.shape(), ShapeError,
             "AdamW: the gradient of {} must have shape {}, it has {}", parameter.name, parameter.value.shape().str(),
             parameter.grad.shape().str());
    PM_CHECK(parameter.grad.dtype() == parameter.value.dtype(), DTypeError,
             "AdamW: the gradient of {} must be {}, it is {}", parameter.name, to_string(parameter.value.dtype()),
             to_string(parameter.grad.dtype()));
    tensors.push_back({parameter.value, parameter.grad, parameter.exp_avg, parameter.exp_avg_sq, parameter.lr_scale,
                       parameter.weight_decay});
    grads.push_back(parameter.grad);
  }
  Tensor norm;
  if (!grads.empty()) norm = ops::global_norm(ctx, grads, scaling.scale);
  ops::adamw_step(ctx, tensors, clock_, {options_.beta1, options_.beta2, options_.eps, scaling.scale, scaling.max_norm},
                  norm);
  for (OptimParameter& parameter : parameters_) parameter.grad = Tensor();
  return norm;
}

int64_t AdamW::steps() const { return static_cast<int64_t>(clock_.to_host<double>()[1]); }

void AdamW::set_steps(int64_t steps) {
  PM_CHECK(steps >= 0, ConfigError, "AdamW: the number of steps must not be negative, got {}", steps);
  const double lr = clock_.to_host<double>()[0];
  clock_.copy_from_host(std::vector<double>{lr, static_cast<double>(steps)}.data());
}

}  // namespace pm
