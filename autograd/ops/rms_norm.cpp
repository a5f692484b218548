#include "autograd/ops/rms_norm.h"

#include "engine/ops/norm/rms_norm.h"

namespace pm {

Variable rms_norm(Context& ctx, const Variable& x, const Variable& weight, double eps) {
  return record(ctx, "rms_norm", ops::rms_norm(ctx, x.value(), weight.value(), eps), {x, weight},
                [xs = x.save(), ws = weight.save(), eps](Context& c, const Tensor& dout, GradSink& grads) {
                  auto [dx, dweight] = ops::rms_norm_grad(c, dout, xs.tensor(), ws.tensor(), eps);
                  grads.add(0, std::move(dx));
                  grads.add(1, std::move(dweight));
                });
}

}  // namespace pm
