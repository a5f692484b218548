// The same values under another shape: no copy, forward or backward.
#pragma once
#include "autograd/core/variable.h"

namespace pm {

// Throws ShapeError when the numbers of elements differ.
Variable reshape(Context& ctx, const Variable& v, const Shape& shape);

}  // namespace pm
