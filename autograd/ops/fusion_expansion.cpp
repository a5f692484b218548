#include "autograd/ops/fusion_expansion.h"

namespace pm {

FusedRegions fusion_expansion(Context& ctx, const Variable& tokens, int64_t k, int64_t region_h, int64_t region_w,
                              Expansion expansion, ShiftPad shift_pad, ScanOrder scan) {
  ops::RegionFusionResult fused =
      ops::fusion_expansion(ctx, tokens.value(), k, region_h, region_w, expansion, shift_pad, scan);
  Variable out = record(
      ctx, "fusion_expansion", std::move(fused.out), {tokens},
      [=, target = fused.target, count = fused.count](Context& c, const Tensor& dout, GradSink& grads) {
        grads.add(0,
                  ops::fusion_expansion_grad(c, dout, target, count, region_h, region_w, expansion, shift_pad, scan));
      });
  return {std::move(out), std::move(fused.target)};
}

}  // namespace pm
