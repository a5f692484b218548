#include "apps/train_step.h"

#include <cassert>
#include <utility>

#include "autograd/ops/cross_entropy.h"

namespace pm::app {

AdamW make_adamw(Context& ctx, const PixelMamba& model, double weight_decay) {
  ParameterGroup decayed, plain;
  decayed.weight_decay = weight_decay;
  for (const Parameter& parameter : model.parameters()) {
    (parameter.decay ? decayed : plain).parameters.push_back({parameter.name, parameter.value.value()});
  }
  return AdamW(ctx, {decayed, plain});
}

std::vector<NamedTensor> values_of(const PixelMamba& model) {
  std::vector<NamedTensor> values;
  for (const Parameter& parameter : model.parameters()) values.push_back({parameter.name, parameter.value.value()});
  return values;
}

Tensor apply_gradients(Context& ctx, PixelMamba& model, AdamW& optimiser, const StepOptions& options) {
  auto slot = optimiser.parameters().begin();
  for (const bool decayed : {true, false}) {  // the order of make_adamw's groups
    for (Parameter& parameter : model.parameters()) {
      if (parameter.decay != decayed) continue;
      assert(slot->name == parameter.name);
      (slot++)->grad = parameter.value.grad();
      parameter.value.clear_grad();
    }
  }
  if (options.lr) optimiser.set_learning_rate(ctx, *options.lr);
  return optimiser.step(ctx, {options.grad_scale, options.clip});
}

StepResult classification_step(Context& ctx, PixelMamba& model, AdamW& optimiser, const Variable& image,
                               const Tensor& targets, const ClassificationStep& options) {
  const Variable logits = model.forward(ctx, image, options.forward).logits;
  const Variable loss = cross_entropy(ctx, logits, targets, options.label_smoothing);
  backward(ctx, loss);
  return {loss.value(), apply_gradients(ctx, model, optimiser, {std::nullopt, 1.0, options.clip})};
}

double host_value(const Tensor& tensor) {
  return tensor.dtype() == DType::f64 ? tensor.to_host<double>()[0] : tensor.to_host<float>()[0];
}

}  // namespace pm::app
