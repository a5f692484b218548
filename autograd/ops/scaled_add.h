// out = alpha * a + beta * b; see engine/ops/elementwise/scaled_add.h
#pragma once
#include "autograd/core/variable.h"

namespace pm {

Variable scaled_add(Context& ctx, const Variable& a, double alpha, const Variable& b, double beta);
inline Variable add(Context& ctx, const Variable& a, const Variable& b) { return scaled_add(ctx, a, 1.0, b, 1.0); }

}  // namespace pm
