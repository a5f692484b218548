// Negative log likelihood of discrete survival times; see engine/ops/loss/survival_nll.h
#pragma once
#include "autograd/core/variable.h"

namespace pm {

// logits: (batch, n_bins); bin, censored: (batch) i64 on the same device. Returns the mean loss of shape (1).
Variable survival_nll(Context& ctx, const Variable& logits, const Tensor& bin, const Tensor& censored);

}  // namespace pm
