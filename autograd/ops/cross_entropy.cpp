#include "autograd/ops/cross_entropy.h"

#include "engine/ops/loss/cross_entropy.h"

namespace pm {

Variable cross_entropy(Context& ctx, const Variable& logits, const Tensor& targets, double label_smoothing) {
  return record(
      ctx, "cross_entropy", ops::cross_entropy(ctx, logits.value(), targets, label_smoothing), {logits},
      [ls = logits.save(), ts = Saved(targets), label_smoothing](Context& c, const Tensor& dout, GradSink& grads) {
        grads.add(0, ops::cross_entropy_grad(c, dout, ls.tensor(), ts.tensor(), label_smoothing));
      });
}

}  // namespace pm
