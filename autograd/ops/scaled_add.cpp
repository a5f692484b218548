#include "autograd/ops/scaled_add.h"

#include "engine/ops/elementwise/scaled_add.h"

namespace pm {
namespace {

Tensor scaled(Context& ctx, const Tensor& dout, double factor) {
  return factor == 1.0 ? dout : ops::scale(ctx, dout, factor);
}

}  // namespace

Variable scaled_add(Context& ctx, const Variable& a, double alpha, const Variable& b, double beta) {
  return record(ctx, "scaled_add", ops::scaled_add(ctx, a.value(), alpha, b.value(), beta), {a, b},
                [alpha, beta](Context& c, const Tensor& dout, GradSink& grads) {
                  if (grads.wants(0)) grads.add(0, scaled(c, dout, alpha));
                  if (grads.wants(1)) grads.add(1, scaled(c, dout, beta));
                });
}

}  // namespace pm
