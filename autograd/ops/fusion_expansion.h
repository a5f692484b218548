// Merges redundant regions and halves the maps of those that are left; see engine/ops/token/fusion_expansion.h
#pragma once
#include "autograd/ops/region_fusion.h"
#include "engine/ops/token/fusion_expansion.h"

namespace pm {

// `out` of the result is the expanded one. region_h and region_w are those of the input.
FusedRegions fusion_expansion(Context& ctx, const Variable& tokens, int64_t k, int64_t region_h, int64_t region_w,
                              Expansion expansion, ShiftPad shift_pad, ScanOrder scan);

}  // namespace pm
