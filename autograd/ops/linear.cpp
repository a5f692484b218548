#include "autograd/ops/linear.h"

#include <utility>

#include "engine/ops/gemm/linear.h"

namespace pm {
namespace {

// Saves an input only when the gradient of its partner needs it: x for dweight, weight for dx.
Saved save_for(const Variable& input, const Variable& partner) {
  return partner.requires_grad() ? input.save() : Saved(Tensor());
}

}  // namespace

Variable linear(Context& ctx, const Variable& x, const Variable& weight, const Variable& bias) {
  return record(ctx, "linear", ops::linear(ctx, x.value(), weight.value(), bias.value()), {x, weight, bias},
                [xs = save_for(x, weight), ws = save_for(weight, x)](Context& c, const Tensor& dout, GradSink& grads) {
                  if (grads.wants(0)) grads.add(0, ops::linear_grad_input(c, {dout}, ws.tensor()));
                  if (grads.wants(1)) grads.add(1, ops::linear_grad_weight(c, {dout}, xs.tensor()));
                  if (grads.wants(2)) grads.add(2, ops::linear_grad_bias(c, dout));
                });
}

std::vector<Variable> linear_split(Context& ctx, const Variable& x, const Variable& weight,
                                   std::vector<int64_t> sizes) {
  return record_many(ctx, "linear_split", ops::linear_split(ctx, x.value(), weight.value(), sizes), {x, weight},
                     [xs = save_for(x, weight), ws = save_for(weight, x)](Context& c, const std::vector<Tensor>& douts,
                                                                          GradSink& grads) {
                       if (grads.wants(0)) grads.add(0, ops::linear_grad_input(c, douts, ws.tensor()));
                       if (grads.wants(1)) grads.add(1, ops::linear_grad_weight(c, douts, xs.tensor()));
                     });
}

}  // namespace pm
