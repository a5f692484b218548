// Mean cross entropy against soft targets; see engine/ops/loss/cross_entropy.h
#pragma once
#include "autograd/core/variable.h"

namespace pm {

// logits: (batch, classes); targets: (batch, classes), same dtype, no gradient. Returns the loss of shape (1).
Variable cross_entropy(Context& ctx, const Variable& logits, const Tensor& targets, double label_smoothing);

}  // namespace pm
