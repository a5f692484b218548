// norm = sqrt(sum over all tensors and elements of value^2)
// clip_by_norm: value *= min(1, max_norm / (norm + 1e-6)) for every element; a norm that is not finite makes the values NaN,
// so that a broken step shows itself.
// tensors: any shapes, contiguous, one dtype (CPU f32, f64; CUDA f32); norm: (1), the same dtype, on the same device: it is
// never read by the host.
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
  std::vector<Item> items;
  void* norm;  // one element
  DType dtype;
};
struct ClipByNormArgs {
  struct Item {
    void* data;
    int64_t n;
  };
  std::vector<Item> items;
  const void* norm;  // one element
  double max_norm;
  DType dtype;
};
constexpr double kClipEps = 1e-6;

namespace cpu {
void global_norm(const GlobalNormArgs&);
void clip_by_norm(const ClipByNormArgs&);
}  // namespace cpu
namespace cuda {
void global_norm(const GlobalNormArgs&, Stream);
void clip_by_norm(const ClipByNormArgs&, Stream);
}  // namespace cuda

namespace ops {
// At least one tensor -> norm (1). Throws DTypeError or DeviceError when the tensors do not match, Error without tensors.
Tensor global_norm(Context& ctx, const std::vector<Tensor>& tensors);
// In place. norm: (1), from global_norm or a reduction of several. Throws as above, ShapeError for another shape of norm.
void clip_by_norm(Context& ctx, std::vector<Tensor>& tensors, const Tensor& norm, double max_norm);
}  // namespace ops

}  // namespace pm
