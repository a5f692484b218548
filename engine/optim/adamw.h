// AdamW over a model's parameters, in groups with their own learning-rate factor and weight decay. Knows tensors only:
// where gradients come from is the caller's business. Maths: engine/ops/optim/adamw.h
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "engine/core/tensor.h"

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
  // The gradients that are set: what ops::global_norm and ops::clip_by_norm take.
  std::vector<Tensor> grads() const;

  // Updates every parameter with a gradient, in place, and lets go of the gradients.
  // Throws ShapeError or DTypeError when a gradient does not match its parameter; all are checked before the first update.
  void step(Context& ctx, double lr);

  // Steps made so far: part of a checkpoint.
  int64_t steps() const { return steps_; }
  void set_steps(int64_t steps);

 private:
  AdamWOptions options_;
  std::vector<OptimParameter> parameters_;
  int64_t steps_ = 0;
};

}  // namespace pm
