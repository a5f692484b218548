#include "autograd/ops/region_fusion.h"

namespace pm {

FusedRegions region_fusion(Context& ctx, const Variable& tokens, int64_t k) {
  ops::RegionFusionResult fused = ops::region_fusion(ctx, tokens.value(), k);
  Variable out = record(ctx, "region_fusion", std::move(fused.out), {tokens},
                        [target = fused.target, count = fused.count](Context& c, const Tensor& dout, GradSink& grads) {
                          grads.add(0, ops::region_fusion_grad(c, dout, target, count));
                        });
  return {std::move(out), std::move(fused.target)};
}

}  // namespace pm
