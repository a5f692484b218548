// Pixels to tokens: windows of region_size x region_size visited in scan order, the pixels of a window in the same
// order, and one learned CLS token at index (region_size * region_size) / 2 of every window.
//
// image    : u8 (batch, height, width, 3) RGB, scaled to 0..1 and normalised: (value / 255 - mean) / std per channel;
//            or float (batch, 3, height, width), normalised already. Contiguous. Float images are f64 beside f64 tokens
//            and f32 beside f32 and bf16 tokens.
// cls_token: (1, 1, 3), parameter dtype
// tokens   : (batch, n_regions, region_len, 3), region_len = region_size * region_size + 1,
//            n_regions = ceil(height / region_size) * ceil(width / region_size); the missing pixels at the right and
//            the bottom are white
// Gradient : dimage = the tokens put back at their pixels (padding and CLS dropped), dcls_token = sum over batch and
//            regions of the CLS rows of dtokens
#pragma once
#include "engine/core/tensor.h"
#include "engine/ops/token/scan_order.h"

namespace pm {

struct SerializeOptions {
  int64_t region_size = 0;  // pixels, 1 to kMaxRegionSize
  ScanOrder scan = ScanOrder::boustrophedon;
  DType dtype = DType::f32;  // of the tokens
};

// Offsets inside one window are 32-bit: 3 * (kMaxRegionSize^2 + 1) must stay below 2^31.
inline constexpr int64_t kMaxRegionSize = 16384;
inline constexpr int kPixelChannels = 3;

// ImageNet statistics of RGB scaled to 0..1.
template <typename Real>
constexpr Real pixel_mean(int channel) {
  return channel == 0 ? Real(0.485) : channel == 1 ? Real(0.456) : Real(0.406);
}
template <typename Real>
constexpr Real pixel_std(int channel) {
  return channel == 0 ? Real(0.229) : channel == 1 ? Real(0.224) : Real(0.225);
}
// `value` is in 0..1; white is 1.
template <typename Real>
constexpr Real normalised_pixel(Real value, int channel) {
  const Real inverse_std = channel == 0 ? Real(1.0 / 0.229) : channel == 1 ? Real(1.0 / 0.224) : Real(1.0 / 0.225);
  return (value - pixel_mean<Real>(channel)) * inverse_std;
}

// How an image falls into windows.
struct WindowGrid {
  int64_t batch, height, width, region_size;
  ScanOrder scan;

  constexpr int64_t rows() const { return (height + region_size - 1) / region_size; }
  constexpr int64_t cols() const { return (width + region_size - 1) / region_size; }
  constexpr int64_t n_regions() const { return rows() * cols(); }
  constexpr int64_t region_len() const { return region_size * region_size + 1; }
};

struct SerializeArgs {
  const void* image;      // see above
  const void* cls_token;  // (1, 1, 3), parameter dtype
  void* tokens;           // (batch, n_regions, region_len, 3)
  WindowGrid grid;
  bool bytes;   // the image is u8 (batch, height, width, 3)
  DType dtype;  // of the tokens
};
struct DeserializeArgs {
  const void* tokens;  // (batch, n_regions, region_len, 3), dtype
  void* image;         // (batch, 3, height, width), parameter dtype
  WindowGrid grid;
  DType dtype;
};
struct SerializeClsGradArgs {
  const void* dtokens;  // (regions, region_len, 3), dtype
  void* dcls_token;     // (1, 1, 3), parameter dtype
  int64_t regions;      // batch * n_regions
  int64_t region_len;
  DType dtype;
};

namespace cpu {
void serialize(const SerializeArgs&);
void deserialize(const DeserializeArgs&);
void serialize_cls_grad(const SerializeClsGradArgs&);
}  // namespace cpu
namespace cuda {
void serialize(const SerializeArgs&, Stream);
void deserialize(const DeserializeArgs&, Stream);
void serialize_cls_grad(const SerializeClsGradArgs&, Stream);
}  // namespace cuda

namespace ops {
// Each throws ShapeError, DTypeError or DeviceError when the tensors do not match.
Tensor serialize(Context& ctx, const Tensor& image, const Tensor& cls_token, const SerializeOptions& options);
// The image (batch, 3, height, width) that the tokens stand for, without CLS and padding, in the parameter dtype of the
// tokens. The inverse of serialize for float images, and its gradient towards the image.
Tensor deserialize(Context& ctx, const Tensor& tokens, int64_t height, int64_t width, int64_t region_size,
                   ScanOrder scan);
// Gradient towards cls_token: (1, 1, 3), parameter dtype. dtokens: (batch, n_regions, region_len, 3).
Tensor serialize_cls_grad(Context& ctx, const Tensor& dtokens);
}  // namespace ops

}  // namespace pm
