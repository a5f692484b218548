// norm = scale * sqrt(sum over all tensors and elements of value^2)
// tensors: any shapes, contiguous, one dtype (CPU f32, f64; CUDA f32); norm: (1), the same dtype, on the same device: it is
// never read by the host. ops::adamw_step clips by it.
#pragma once
#include <cstdint>
#include <vector>

#include "engine/core/tensor.h"

namespace pm {

struct GlobalNormArgs {
  struct Item {
    const void* data;
    int64_t n;
  };
  std::vector<Item> items;  // none is empty
  double scale;             // not negative
  void* norm;               // one element
  DType dtype;
};

// What gradients of this norm are multiplied by so that none is longer than max_norm; NaN for NaN.
constexpr double clip_factor(double norm, double max_norm) {
  const double wanted = max_norm / (norm + 1e-6);
  return wanted >= 1.0 ? 1.0 : wanted;
}

namespace cpu {
void global_norm(const GlobalNormArgs&);
}
namespace cuda {
void global_norm(const GlobalNormArgs&, Stream);
}

namespace ops {
// At least one tensor, scale >= 0 -> norm (1). Throws DTypeError or DeviceError when the tensors do not match, Error without
// tensors or for a negative scale.
Tensor global_norm(Context& ctx, const std::vector<Tensor>& tensors, double scale = 1.0);
}  // namespace ops

}  // namespace pm
