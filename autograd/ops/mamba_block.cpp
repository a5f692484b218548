#include "autograd/ops/mamba_block.h"

#include <utility>

namespace pm {
namespace {

ops::MambaDirectionWeights values(const MambaDirection& p) {
  return {p.conv_weight.value(), p.conv_bias.value(), p.x_proj.value(), p.dt_weight.value(),
          p.dt_bias.value(),     p.A_log.value(),     p.D_skip.value()};
}
ops::MambaBlockWeights values(const MambaParameters& p) {
  return {p.norm.value(), p.in_proj.value(), p.out_proj.value(), {values(p.forward), values(p.backward)}};
}

// The order of the node's inputs; `add_gradients` follows it.
std::vector<Variable> inputs(const Variable& tokens, const MambaParameters& p) {
  std::vector<Variable> all = {tokens, p.norm, p.in_proj, p.out_proj};
  for (const MambaDirection* d : {&p.forward, &p.backward}) {
    for (const Variable* v :
         {&d->conv_weight, &d->conv_bias, &d->x_proj, &d->dt_weight, &d->dt_bias, &d->A_log, &d->D_skip}) {
      all.push_back(*v);
    }
  }
  return all;
}

void add_gradients(ops::MambaBlockGrads grads, GradSink& sink) {
  size_t index = 0;
  const auto add = [&](Tensor& grad) { sink.add(index++, std::move(grad)); };
  add(grads.dtokens);
  add(grads.dweights.norm);
  add(grads.dweights.in_proj);
  add(grads.dweights.out_proj);
  for (ops::MambaDirectionWeights& d : grads.dweights.direction) {
    for (Tensor* grad : {&d.conv_weight, &d.conv_bias, &d.x_proj, &d.dt_weight, &d.dt_bias, &d.A_log, &d.D_skip}) {
      add(*grad);
    }
  }
}

}  // namespace

bool mamba_block_covers(Context& ctx, const Variable& tokens, const MambaParameters& parameters) {
  return ops::mamba_block_covers(ctx, tokens.value(), values(parameters));
}

Variable mamba_block(Context& ctx, const Variable& tokens, const MambaParameters& parameters,
                     const ops::MambaBlockOptions& options) {
  ops::MambaBlockWeights weights = values(parameters);
  Tensor out = ops::mamba_block(ctx, tokens.value(), weights, options);
  return record(
      ctx, "mamba_block", std::move(out), inputs(tokens, parameters),
      [saved = tokens.save(), weights = std::move(weights), options](Context& c, const Tensor& dout, GradSink& grads) {
        add_gradients(ops::mamba_block_grad(c, dout, saved.tensor(), weights, options), grads);
      });
}

}  // namespace pm
