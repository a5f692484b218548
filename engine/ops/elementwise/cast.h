// out = x in another float type, rounded to nearest even;   dx = dout in the type of x
// CPU: f32 and f64. CUDA: f32 and bf16. Any shape, contiguous; n = number of elements
#pragma once
#include "engine/core/tensor.h"

namespace pm {

struct CastArgs {
  const void* x;  // type `from`
  void* out;      // type `to`
  int64_t n;
  DType from, to;
};

namespace cpu {
void cast(const CastArgs&);
}
namespace cuda {
void cast(const CastArgs&, Stream);
}

namespace ops {
// The same tensor, memory shared, when it has the type already. Throws DTypeError for a type the device does not compute in.
Tensor cast(Context& ctx, const Tensor& x, DType dtype);
}  // namespace ops

}  // namespace pm
