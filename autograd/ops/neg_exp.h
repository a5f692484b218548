// out = -exp(x); see engine/ops/elementwise/neg_exp.h
#pragma once
#include "autograd/core/variable.h"

namespace pm {

Variable neg_exp(Context& ctx, const Variable& x);

}  // namespace pm
