// out = x weight^T + bias, and the same cut into groups of output columns; see engine/ops/gemm/linear.h
#pragma once
#include <cstdint>
#include <vector>

#include "autograd/core/variable.h"

namespace pm {

// x (..., in_features), weight (out_features, in_features), bias (out_features) or undefined -> (..., out_features)
Variable linear(Context& ctx, const Variable& x, const Variable& weight, const Variable& bias = {});
// sizes: rows of weight per group -> one (..., sizes[g]) per group
std::vector<Variable> linear_split(Context& ctx, const Variable& x, const Variable& weight, std::vector<int64_t> sizes);

}  // namespace pm
