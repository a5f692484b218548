// out = x in another float type; see engine/ops/elementwise/cast.h
#pragma once
#include "autograd/core/variable.h"

namespace pm {

// x itself when it has the type already.
Variable cast(Context& ctx, const Variable& x, DType dtype);

}  // namespace pm
