#include "autograd/ops/causal_conv1d.h"

#include "engine/ops/conv/causal_conv1d.h"

namespace pm {

Variable causal_conv1d(Context& ctx, const Variable& x, const Variable& weight, const Variable& bias, bool reverse) {
  return record(
      ctx, "causal_conv1d", ops::causal_conv1d(ctx, x.value(), weight.value(), bias.value(), reverse),
      {x, weight, bias},
      [xs = x.save(), ws = weight.save(), bs = bias.save(), reverse](Context& c, const Tensor& dout, GradSink& grads) {
        auto [dx, dweight, dbias] = ops::causal_conv1d_grad(c, dout, xs.tensor(), ws.tensor(), bs.tensor(), reverse);
        grads.add(0, std::move(dx));
        grads.add(1, std::move(dweight));
        grads.add(2, std::move(dbias));
      });
}

}  // namespace pm
