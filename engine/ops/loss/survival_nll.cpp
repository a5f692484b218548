#include "engine/ops/loss/survival_nll.h"

#include "engine/ops/dispatch.h"

namespace pm::ops {
namespace {

void check(Context& ctx, const char* op, const Tensor& logits, const Tensor& bin, const Tensor& censored) {
  check_activation(ctx, op, {"logits", logits});
  check_dtype(op, param_dtype(logits.dtype()), {{"logits", logits}});
  check_device(ctx, op, {{"bin", bin}, {"censored", censored}});
  check_dtype(op, DType::i64, {{"bin", bin}, {"censored", censored}});
  check_rank(op, {"logits", logits}, 2);
  PM_CHECK(logits.numel() > 0, ShapeError, "{}: logits must hold at least one row and one bin, they have shape {}", op,
           logits.shape().str());
  check_shape(op, {"bin", bin}, {logits.size(0)});
  check_shape(op, {"censored", censored}, {logits.size(0)});
}

}  // namespace

Tensor survival_nll(Context& ctx, const Tensor& logits, const Tensor& bin, const Tensor& censored) {
  check(ctx, "survival_nll", logits, bin, censored);
  Tensor loss = Tensor::empty(ctx, {1}, logits.dtype());
  const SurvivalNllArgs args{logits.raw(),   bin.data<int64_t>(), censored.data<int64_t>(), loss.raw(), logits.size(0),
                             logits.size(1), logits.dtype()};
  dispatch_device(
      ctx, "survival_nll", [&] { cpu::survival_nll(args); }, [&](auto stream) { cuda::survival_nll(args, stream); });
  return loss;
}

Tensor survival_nll_grad(Context& ctx, const Tensor& dloss, const Tensor& logits, const Tensor& bin,
                         const Tensor& censored) {
  check(ctx, "survival_nll_grad", logits, bin, censored);
  check_device(ctx, "survival_nll_grad", {{"dloss", dloss}});
  check_dtype("survival_nll_grad", logits.dtype(), {{"dloss", dloss}});
  check_shape("survival_nll_grad", {"dloss", dloss}, {1});
  Tensor dlogits = Tensor::empty(ctx, logits.shape(), logits.dtype());
  const SurvivalNllGradArgs args{dloss.raw(),   logits.raw(),   bin.data<int64_t>(), censored.data<int64_t>(),
                                 dlogits.raw(), logits.size(0), logits.size(1),      logits.dtype()};
  dispatch_device(
      ctx, "survival_nll_grad", [&] { cpu::survival_nll_grad(args); },
      [&](auto stream) { cuda::survival_nll_grad(args, stream); });
  return dlogits;
}

}  // namespace pm::ops
