// out[i] = low + (high - low) * u_i with u_i uniform on (0, 1): 24 bits of the Philox stream of ctx.rng().
// Element i is the same on every device: one fused multiply-add in double, then rounded to the dtype. Rounding may reach
// low or high themselves. Source of the stream: engine/core/philox.h.
// out: any shape, contiguous, CPU f32 or f64, CUDA f32 or bf16; n = number of elements
#pragma once
#include "engine/core/tensor.h"

namespace pm {

struct UniformArgs {
  void* out;
  int64_t n;
  double low, high;
  RngState draw;
  DType dtype;
};

namespace cpu {
void uniform(const UniformArgs&);
}
namespace cuda {
void uniform(const UniformArgs&, Stream);
}

namespace ops {
// Takes one draw from ctx.rng(), also for an empty shape. Throws Error unless low <= high are finite, DTypeError.
Tensor uniform(Context& ctx, const Shape& shape, DType dtype, double low, double high);
}  // namespace ops

}  // namespace pm
