// out[b] = mean over i of x[b, i], summed in a fixed order;   dx[b, i] = dout[b] / n_regions
//
// x: (batch, n_regions, channels), contiguous;   out: (batch, channels), contiguous, same dtype
#pragma once
#include "engine/core/tensor.h"

namespace pm {

struct RegionMeanArgs {
  const void* x;
  void* out;
  int64_t batch, n_regions, channels;
  DType dtype;
};
struct RegionMeanGradArgs {
  const void* dout;
  void* dx;
  int64_t batch, n_regions, channels;
  DType dtype;
};

namespace cpu {
void region_mean(const RegionMeanArgs&);
void region_mean_grad(const RegionMeanGradArgs&);
}  // namespace cpu
namespace cuda {
void region_mean(const RegionMeanArgs&, Stream);
void region_mean_grad(const RegionMeanGradArgs&, Stream);
}  // namespace cuda

namespace ops {
// Throws ShapeError (also for n_regions = 0, which has no mean), DTypeError or DeviceError.
Tensor region_mean(Context& ctx, const Tensor& x);
Tensor region_mean_grad(Context& ctx, const Tensor& dout, int64_t n_regions);
}  // namespace ops

}  // namespace pm
