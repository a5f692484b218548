#include "autograd/core/recompute.h"

#include <utility>

namespace pm {
namespace {

// The random state of the first run, and recording, while it lives.
class Replay {
 public:
  Replay(Context& ctx, RngState rng) : ctx_(ctx), rng_(ctx.rng().state()) {
    ctx_.rng().set_state(rng);
    ctx_.set_grad_enabled(true);
  }
  ~Replay() {
    ctx_.set_grad_enabled(false);
    ctx_.rng().set_state(rng_);
  }
  Replay(const Replay&) = delete;
  Replay& operator=(const Replay&) = delete;

 private:
  Context& ctx_;
  RngState rng_;
};

void rerun_backward(Context& ctx, const RecomputeFn& fn, const std::vector<Saved>& saved, RngState rng,
                    const Tensor& dout, GradSink& grads) {
  std::vector<Variable> leaves;
  for (size_t i = 0; i < saved.size(); ++i) leaves.emplace_back(saved[i].tensor(), grads.wants(i));
  Variable out;
  {
    const Replay replay(ctx, rng);
    out = fn(ctx, leaves);
  }
  if (out.requires_grad()) backward(ctx, out, dout);
  out = Variable();
  for (size_t i = 0; i < leaves.size(); ++i) {
    if (grads.wants(i) && leaves[i].grad().defined()) grads.add(i, leaves[i].grad());
  }
}

}  // namespace

Variable recompute(Context& ctx, const RecomputeFn& fn, const std::vector<Variable>& inputs) {
  if (!ctx.grad_enabled()) return fn(ctx, inputs);
  const RngState rng = ctx.rng().state();
  std::vector<Tensor> outs;
  {
    NoGrad no_grad(ctx);
    outs.push_back(fn(ctx, inputs).value());
  }
  std::vector<Saved> saved;
  for (const Variable& input : inputs) saved.push_back(input.save());
  // Recorded even when no input wants a gradient: parameters inside fn may.
  return record_many(
      ctx, "recompute", std::move(outs), inputs,
      [fn, saved = std::move(saved), rng](Context& c, const std::vector<Tensor>& douts, GradSink& grads) {
        rerun_backward(c, fn, saved, rng, douts[0], grads);
      },
      /*always=*/true)[0];
}

}  // namespace pm
