#include "apps/train_step.h"

#include <cassert>
#include <utility>

#include "engine/ops/elementwise/scaled_add.h"
#include "engine/ops/optim/global_norm.h"

namespace pm::app {

AdamW make_adamw(Context& ctx, const PixelMamba& model, double weight_decay) {
  ParameterGroup decayed, plain;
  decayed.weight_decay = weight_decay;
  for (const Parameter& parameter : model.parameters()) {
    (parameter.decay ? decayed : plain).parameters.push_back({parameter.name, parameter.value.value()});
  }
  return AdamW(ctx, {decayed, plain});
}

Tensor apply_gradients(Context& ctx, PixelMamba& model, AdamW& optimiser, const StepOptions& options) {
  auto slot = optimiser.parameters().begin();
  for (const bool decayed : {true, false}) {  // the order of make_adamw's groups
    for (Parameter& parameter : model.parameters()) {
      if (parameter.decay != decayed) continue;
      Tensor grad = parameter.value.grad();
      if (grad.defined() && options.grad_scale != 1.0) ops::scale_in_place(ctx, grad, options.grad_scale);
      assert(slot->name == parameter.name);
      (slot++)->grad = std::move(grad);
      parameter.value.clear_grad();
    }
  }
  std::vector<Tensor> grads = optimiser.grads();
  Tensor norm = ops::global_norm(ctx, grads);
  if (options.clip > 0.0) ops::clip_by_norm(ctx, grads, norm, options.clip);
  optimiser.step(ctx, options.lr);
  return norm;
}

}  // namespace pm::app
