#include "engine/optim/adamw.h"

#include <algorithm>
#include <set>

#include "engine/core/check.h"
#include "engine/ops/optim/adamw.h"

namespace pm {

AdamW::AdamW(Context& ctx, const std::vector<ParameterGroup>& groups, const AdamWOptions& options) : options_(options) {
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

std::vector<Tensor> AdamW::grads() const {
  std::vector<Tensor> grads;
  for (const OptimParameter& parameter : parameters_) {
    if (parameter.grad.defined()) grads.push_back(parameter.grad);
  }
  return grads;
}

void AdamW::step(Context& ctx, double lr) {
  for (const OptimParameter& parameter : parameters_) {
    if (!parameter.grad.defined()) continue;
    PM_CHECK(parameter.grad.shape() == parameter.value.shape(), ShapeError,
             "AdamW: the gradient of {} must have shape {}, it has {}", parameter.name, parameter.value.shape().str(),
             parameter.grad.shape().str());
    PM_CHECK(parameter.grad.dtype() == parameter.value.dtype(), DTypeError,
             "AdamW: the gradient of {} must be {}, it is {}", parameter.name, to_string(parameter.value.dtype()),
             to_string(parameter.grad.dtype()));
  }
  ++steps_;
  for (OptimParameter& parameter : parameters_) {
    if (!parameter.grad.defined()) continue;
    const AdamWStep step{lr * parameter.lr_scale, options_.beta1, options_.beta2, options_.eps,
                         parameter.weight_decay,  steps_};
    ops::adamw_step(ctx, parameter.value, parameter.grad, parameter.exp_avg, parameter.exp_avg_sq, step);
    parameter.grad = Tensor();
  }
}

void AdamW::set_steps(int64_t steps) {
  PM_CHECK(steps >= 0, ConfigError, "AdamW: the number of steps must not be negative, got {}", steps);
  steps_ = steps;
}

}  // namespace pm
