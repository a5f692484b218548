// AdamW over a model's parameters, in groups with their own learning-rate factor and weight decay. Knows tensors only:
// where gradients come from is the caller's business. Maths: engine/ops/optim/adamw.h
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "engine/core/tensor.h"
#include "engine/ops/optim/adamw.h"

namespace pm {

struct AdamWOptions {
  double beta1 = 0.9, beta2 = 0.999;
  double eps = 1e-8;
};

struct NamedTensor {
  std::string name;
  Tensor value;
};

struct ParameterGroup {
  std::vector<NamedTensor> parameters;  // any shapes, f32 (or f64 on the CPU)
  double lr_scale = 1.0;                // times the lr of step()
  double weight_decay = 0.0;
};

// One parameter with its gradient and its optimiser state; all tensors of one shape and dtype.
struct OptimParameter {
  std::string name;
  Tensor value;       // shares memory with the model's
  Tensor grad;        // undefined: step() leaves the parameter alone
  Tensor exp_avg;     // zeros at first
  Tensor exp_avg_sq;  // zeros at first
  double lr_scale = 1.0;
  double weight_decay = 0.0;
};

// What happens to all gradients of a step before the update.
struct GradientScaling {
  double scale = 1.0;     // they are multiplied by this
  double max_norm = 0.0;  // then shortened to this norm together; 0: not at all
};

class AdamW {
 public:
  // Throws ConfigError for a name that appears twice or options outside their range, DTypeError for a parameter that is
  // neither f32 nor f64.
  AdamW(Context& ctx, const std::vector<ParameterGroup>& groups, const AdamWOptions& options = {});

  // In the order of the groups. Set grad before step(); write exp_avg and exp_avg_sq to restore a checkpoint.
  std::vector<OptimParameter>& parameters() { return parameters_; }
  const std::vector<OptimParameter>& parameters() const { return parameters_; }
  // The parameter of this name. Throws ConfigError when there is none.
  OptimParameter& parameter(const std::string& name);

  // Of the steps to come, before the tensors' own lr_scale: 0 at first. Never waits for the device.
  void set_learning_rate(Context& ctx, double lr);
  // Updates every parameter with a gradient, in place, and lets go of the gradients. Returns their norm between scaling and
  // shortening, (1) on the device; undefined without any gradient. Never waits for the device, and can be captured: learning
  // rate and step count live there.
  // Throws ShapeError or DTypeError when a gradient does not match its parameter; all are checked before the first update.
  Tensor step(Context& ctx, const GradientScaling& scaling = {});

  // Steps made so far: part of a checkpoint. Waits for the device.
  int64_t steps() const;
  void set_steps(int64_t steps);

 private:
  AdamWOptions options_;
  std::vector<OptimParameter> parameters_;
  Tensor clock_;  // see engine/ops/optim/adamw.h
};

}  // namespace pm
