// out = alpha * a + beta * b         (residual add, sum of the two scan directions, gradient accumulation)
// da = alpha * dout;   db = beta * dout
// every tensor: same shape, contiguous, one dtype (CPU f32, f64; CUDA f32, bf16); n = number of elements
#pragma once
#include "engine/core/tensor.h"

namespace pm {

struct ScaledAddArgs {
  const void* a;
  const void* b;  // may be null: out = alpha * a + constant
  void* out;      // may be a or b
  double alpha, beta, constant;
  int64_t n;
  DType dtype;
};

namespace cpu {
void scaled_add(const ScaledAddArgs&);
}
namespace cuda {
void scaled_add(const ScaledAddArgs&, Stream);
}

namespace ops {
// Each throws ShapeError, DTypeError or DeviceError when the tensors do not match.
Tensor scaled_add(Context& ctx, const Tensor& a, double alpha, const Tensor& b, double beta);
Tensor scale(Context& ctx, const Tensor& a, double alpha);
void scaled_add_in_place(Context& ctx, Tensor& a, double alpha, const Tensor& b,
                         double beta);                                 // a = alpha * a + beta * b
void add_in_place(Context& ctx, Tensor& sum, const Tensor& term);      // sum += term
void scale_in_place(Context& ctx, Tensor& a, double alpha);            // a *= alpha
void add_constant_in_place(Context& ctx, Tensor& a, double constant);  // a += constant
}  // namespace ops

}  // namespace pm
