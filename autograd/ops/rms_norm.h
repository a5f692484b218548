// out = x / sqrt(mean(x^2) + eps) * weight over the last axis; see engine/ops/norm/rms_norm.h
#pragma once
#include "autograd/core/variable.h"

namespace pm {

// x: (..., channels); weight: (channels), param_dtype of x.
Variable rms_norm(Context& ctx, const Variable& x, const Variable& weight, double eps);

}  // namespace pm
