// Region fusion: merges the k most redundant regions of an image into the regions they resemble most.
//
// Pairs     : regions at even index are probes, those at odd index gallery; with an odd count the last is in neither.
// Similarity: cosine of the CLS tokens (index (region_len - 1) / 2), dot / sqrt(|probe|^2 * |gallery|^2), in double. A CLS token
//             of zero norm has similarity 0 to all; NaN ranks below everything.
// Choice    : each probe takes its most similar gallery region (ties: lowest index); the k probes of highest similarity are
//             merged (ties: lowest index).
// Output    : a gallery region becomes the plain mean of itself and the probes that chose it, token by token (CLS too), at its
//             own place; merged probes disappear; all others keep their order. Sums run over regions in ascending index.
// Gradient  : dtokens of a region = dout[target] / count[target]; the choice itself carries none.
//
// All sums of the similarity run over channels in ascending order and products of float32 values are exact in double, so
// every device makes the same choice from the same tokens. Equal CLS tokens have a similarity of exactly 1.
#pragma once
#include "engine/core/tensor.h"

namespace pm {

struct RegionFusionArgs {
  const void* tokens;  // (batch, n_regions, region_len, channels), contiguous
  void* out;           // (batch, n_regions - k, region_len, channels), contiguous
  int64_t* target;     // (batch, n_regions): index in out where each region went
  int64_t* count;      // (batch, n_regions - k): regions merged into each output region
  int64_t batch, n_regions, region_len, channels, k;
  DType dtype;
};
struct RegionFusionGradArgs {
  const void* dout;       // (batch, n_regions - k, region_len, channels)
  const int64_t* target;  // (batch, n_regions)
  const int64_t* count;   // (batch, n_regions - k)
  void* dtokens;          // (batch, n_regions, region_len, channels)
  int64_t batch, n_regions, n_out;
  int64_t region_values;  // region_len * channels
  DType dtype;
};

namespace cpu {
void region_fusion(const RegionFusionArgs&);
void region_fusion_grad(const RegionFusionGradArgs&);
}  // namespace cpu
namespace cuda {
void region_fusion(const RegionFusionArgs&, Stream);
void region_fusion_grad(const RegionFusionGradArgs&, Stream);
}  // namespace cuda

namespace ops {

struct RegionFusionResult {
  Tensor out;     // (batch, n_regions - k, region_len, channels)
  Tensor target;  // (batch, n_regions), i64
  Tensor count;   // (batch, n_regions - k), i64
};

// 0 <= k <= floor(n_regions / 2); k = 0 copies. Throws ShapeError, DTypeError or DeviceError. Never waits for the device.
RegionFusionResult region_fusion(Context& ctx, const Tensor& tokens, int64_t k);
// dout: (batch, n_regions - k, region_len, channels); target and count from the forward pass. Gives dtokens.
Tensor region_fusion_grad(Context& ctx, const Tensor& dout, const Tensor& target, const Tensor& count);

}  // namespace ops

}  // namespace pm
