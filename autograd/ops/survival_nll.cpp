#include "autograd/ops/survival_nll.h"

#include "engine/ops/loss/survival_nll.h"

namespace pm {

Variable survival_nll(Context& ctx, const Variable& logits, const Tensor& bin, const Tensor& censored) {
  return record(
      ctx, "survival_nll", ops::survival_nll(ctx, logits.value(), bin, censored), {logits},
      [ls = logits.save(), bs = Saved(bin), cs = Saved(censored)](Context& c, const Tensor& dout, GradSink& grads) {
        grads.add(0, ops::survival_nll_grad(c, dout, ls.tensor(), bs.tensor(), cs.tensor()));
      });
}

}  // namespace pm
