// Merges redundant regions; see engine/ops/token/region_fusion.h. Gradients flow through the means, not through the choice.
#pragma once
#include "autograd/core/variable.h"
#include "engine/ops/token/region_fusion.h"

namespace pm {

struct FusedRegions {
  Variable out;   // (batch, n_regions - k, region_len, channels)
  Tensor target;  // (batch, n_regions), i64: index in out where each region went
};

FusedRegions region_fusion(Context& ctx, const Variable& tokens, int64_t k);

}  // namespace pm
