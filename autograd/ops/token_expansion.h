// Halves the map of every region along one axis; see engine/ops/token/token_expansion.h
#pragma once
#include "autograd/core/variable.h"
#include "engine/ops/token/token_expansion.h"

namespace pm {

Variable token_expansion(Context& ctx, const Variable& tokens, int64_t region_h, int64_t region_w, Expansion expansion,
                         ShiftPad shift_pad, ScanOrder scan);

}  // namespace pm
