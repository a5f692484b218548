// Region fusion and the token expansion of its result in one pass: out = token_expansion(region_fusion(tokens, k)). The merged
// regions never exist in memory: an output value is made from the two or three cells that it depends on, each the mean over
// the regions that were merged. Definitions: region_fusion.h, token_expansion.h.
// Gradient: dtokens of a region = token_expansion_grad(dout)[target] / count[target]; the choice itself carries none.
//
// Where the element type is narrow (bfloat16), the mean is not rounded before it is expanded.
#pragma once
#include "engine/ops/token/region_fusion.h"
#include "engine/ops/token/token_expansion.h"

namespace pm {

struct FusionExpansionArgs {
  const void* tokens;  // (batch, n_regions, region_h * region_w + 1, channels), contiguous
  void* out;           // (batch, n_regions - k, new_h * new_w + 1, new_channels), contiguous
  int64_t* target;     // (batch, n_regions): index in out where each region went
  int64_t* count;      // (batch, n_regions - k): regions merged into each output region
  int64_t batch, n_regions, k;
  ExpansionMap map;  // regions: batch * (n_regions - k)
  DType dtype;
};
struct FusionExpansionGradArgs {
  const void* dout;       // (batch, n_out, new_h * new_w + 1, new_channels)
  const int64_t* target;  // (batch, n_regions)
  const int64_t* count;   // (batch, n_out)
  void* dtokens;          // (batch, n_regions, region_h * region_w + 1, channels)
  int64_t batch, n_regions, n_out;
  ExpansionMap map;  // regions: batch * n_regions
  DType dtype;
};

namespace cpu {
void fusion_expansion(const FusionExpansionArgs&);
void fusion_expansion_grad(const FusionExpansionGradArgs&);
}  // namespace cpu
namespace cuda {
void fusion_expansion(const FusionExpansionArgs&, Stream);
void fusion_expansion_grad(const FusionExpansionGradArgs&, Stream);
}  // namespace cuda

namespace ops {
// `out` of the result is the expanded one. Throws what region_fusion and token_expansion throw. Never waits for the device.
RegionFusionResult fusion_expansion(Context& ctx, const Tensor& tokens, int64_t k, int64_t region_h, int64_t region_w,
                                    Expansion expansion, ShiftPad shift_pad, ScanOrder scan);
// region_h and region_w are those of the input; target and count come from the forward pass. Gives dtokens.
Tensor fusion_expansion_grad(Context& ctx, const Tensor& dout, const Tensor& target, const Tensor& count,
                             int64_t region_h, int64_t region_w, Expansion expansion, ShiftPad shift_pad,
                             ScanOrder scan);
}  // namespace ops

}  // namespace pm
