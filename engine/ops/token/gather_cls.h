// out[b, i] = the CLS token of region i: tokens[b, i, (region_len - 1) / 2]
// dtokens is dout at those places and zero elsewhere.
//
// tokens: (batch, n_regions, region_len, channels), contiguous;   out: (batch, n_regions, channels), contiguous, same dtype
#pragma once
#include "engine/core/tensor.h"

namespace pm {

struct GatherClsArgs {
  const void* tokens;  // (regions, region_len, channels)
  void* out;           // (regions, channels)
  int64_t regions;     // batch * n_regions
  int64_t region_len, channels;
  DType dtype;
};
struct GatherClsGradArgs {
  const void* dout;  // (regions, channels)
  void* dtokens;     // (regions, region_len, channels), zero already
  int64_t regions, region_len, channels;
  DType dtype;
};

namespace cpu {
void gather_cls(const GatherClsArgs&);
void gather_cls_grad(const GatherClsGradArgs&);
}  // namespace cpu
namespace cuda {
void gather_cls(const GatherClsArgs&, Stream);
void gather_cls_grad(const GatherClsGradArgs&, Stream);
}  // namespace cuda

namespace ops {
// Each throws ShapeError, DTypeError or DeviceError when the tensors do not match.
Tensor gather_cls(Context& ctx, const Tensor& tokens);
// dout: (batch, n_regions, channels). Gives dtokens: (batch, n_regions, region_len, channels).
Tensor gather_cls_grad(Context& ctx, const Tensor& dout, int64_t region_len);
}  // namespace ops

}  // namespace pm
