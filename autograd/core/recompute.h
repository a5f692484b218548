// A recompute scope trades time for memory: it keeps only its inputs between forward and backward.
#pragma once
#include <functional>
#include <vector>

#include "autograd/core/variable.h"

namespace pm {

using RecomputeFn = std::function<Variable(Context&, const std::vector<Variable>& inputs)>;

// fn(ctx, inputs), recorded as one node. Forward runs without recording; backward runs fn again from the saved inputs,
// with the random state it had the first time, and differentiates that. Parameters that fn captures get their gradients
// as usual. Without gradients enabled this is a plain call.
Variable recompute(Context& ctx, const RecomputeFn& fn, const std::vector<Variable>& inputs);

}  // namespace pm
