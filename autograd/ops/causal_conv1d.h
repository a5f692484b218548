// out = silu(depthwise causal convolution); see engine/ops/conv/causal_conv1d.h
#pragma once
#include "autograd/core/variable.h"

namespace pm {

// x: (batch, seq_len, d_inner); weight: (d_inner, 1, d_conv); bias: (d_inner). reverse: taps look ahead.
Variable causal_conv1d(Context& ctx, const Variable& x, const Variable& weight, const Variable& bias, bool reverse);

}  // namespace pm
