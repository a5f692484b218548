// Mean over the regions of an image; see engine/ops/token/region_mean.h
#pragma once
#include "autograd/core/variable.h"

namespace pm {

Variable region_mean(Context& ctx, const Variable& x);

}  // namespace pm
