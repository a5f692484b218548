#include "autograd/ops/neg_exp.h"

#include "engine/ops/elementwise/neg_exp.h"

namespace pm {

Variable neg_exp(Context& ctx, const Variable& x) {
  const Tensor out = ops::neg_exp(ctx, x.value());
  return record(ctx, "neg_exp", out, {x}, [saved = Saved(out)](Context& c, const Tensor& dout, GradSink& grads) {
    grads.add(0, ops::neg_exp_grad(c, dout, saved.tensor()));
  });
}

}  // namespace pm
