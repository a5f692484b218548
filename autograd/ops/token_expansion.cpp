#include "autograd/ops/token_expansion.h"

namespace pm {

Variable token_expansion(Context& ctx, const Variable& tokens, int64_t region_h, int64_t region_w, Expansion expansion,
                         ShiftPad shift_pad, ScanOrder scan) {
  return record(ctx, "token_expansion",
                ops::token_expansion(ctx, tokens.value(), region_h, region_w, expansion, shift_pad, scan), {tokens},
                [=](Context& c, const Tensor& dout, GradSink& grads) {
                  grads.add(0, ops::token_expansion_grad(c, dout, region_h, region_w, expansion, shift_pad, scan));
                });
}

}  // namespace pm
