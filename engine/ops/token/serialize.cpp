#include "engine/ops/token/serialize.h"

#include "engine/ops/dispatch.h"

namespace pm::ops {
namespace {

WindowGrid make_grid(const char* op, int64_t batch, int64_t height, int64_t width, int64_t region_size,
                     ScanOrder scan) {
  PM_CHECK(region_size >= 1 && region_size <= kMaxRegionSize, ShapeError, "{}: region_size must be 1 to {}, it is {}",
           op, kMaxRegionSize, region_size);
  PM_CHECK(height >= 1 && width >= 1, ShapeError, "{}: an image of {} x {} pixels has no regions", op, height, width);
  return {batch, height, width, region_size, scan};
}

}  // namespace

Tensor serialize(Context& ctx, const Tensor& image, const Tensor& cls_token, const SerializeOptions& options) {
  check_device(ctx, "serialize", {{"image", image}, {"cls_token", cls_token}});
  check_rank("serialize", {"image", image}, 4);
  const bool bytes = image.dtype() == DType::u8;
  if (!bytes) check_dtype("serialize", param_dtype(options.dtype), {{"image", image}});
  check_dtype("serialize", param_dtype(options.dtype), {{"cls_token", cls_token}});
  check_shape("serialize", {"cls_token", cls_token}, {1, 1, kPixelChannels});
  PM_CHECK(image.size(bytes ? 3 : 1) == kPixelChannels, ShapeError, "serialize: image must have shape {}, it has {}",
           bytes ? "(batch, height, width, 3)" : "(batch, 3, height, width)", image.shape().str());
  const WindowGrid grid = make_grid("serialize", image.size(0), image.size(bytes ? 1 : 2), image.size(bytes ? 2 : 3),
                                    options.region_size, options.scan);

  Tensor tokens = Tensor::empty(ctx, {grid.batch, grid.n_regions(), grid.region_len(), kPixelChannels}, options.dtype);
  check_activation(ctx, "serialize", {"tokens", tokens});
  const SerializeArgs args{image.raw(), cls_token.raw(), tokens.raw(), grid, bytes, options.dtype};
  dispatch_device(
      ctx, "serialize", [&] { cpu::serialize(args); }, [&](auto stream) { cuda::serialize(args, stream); });
  return tokens;
}

Tensor deserialize(Context& ctx, const Tensor& tokens, int64_t height, int64_t width, int64_t region_size,
                   ScanOrder scan) {
  check_activation(ctx, "deserialize", {"tokens", tokens});
  check_rank("deserialize", {"tokens", tokens}, 4);
  const WindowGrid grid = make_grid("deserialize", tokens.size(0), height, width, region_size, scan);
  check_shape("deserialize", {"tokens", tokens}, {grid.batch, grid.n_regions(), grid.region_len(), kPixelChannels});

  Tensor image = Tensor::empty(ctx, {grid.batch, kPixelChannels, height, width}, param_dtype(tokens.dtype()));
  const DeserializeArgs args{tokens.raw(), image.raw(), grid, tokens.dtype()};
  dispatch_device(
      ctx, "deserialize", [&] { cpu::deserialize(args); }, [&](auto stream) { cuda::deserialize(args, stream); });
  return image;
}

Tensor serialize_cls_grad(Context& ctx, const Tensor& dtokens) {
  check_activation(ctx, "serialize_cls_grad", {"dtokens", dtokens});
  check_rank("serialize_cls_grad", {"dtokens", dtokens}, 4);
  PM_CHECK(dtokens.size(2) >= 1 && dtokens.size(3) == kPixelChannels, ShapeError,
           "serialize_cls_grad: dtokens must have shape (batch, n_regions, region_len, 3), it has {}",
           dtokens.shape().str());
  Tensor dcls_token = Tensor::empty(ctx, {1, 1, kPixelChannels}, param_dtype(dtokens.dtype()));
  const SerializeClsGradArgs args{dtokens.raw(), dcls_token.raw(), dtokens.size(0) * dtokens.size(1), dtokens.size(2),
                                  dtokens.dtype()};
  dispatch_device(
      ctx, "serialize_cls_grad", [&] { cpu::serialize_cls_grad(args); },
      [&](auto stream) { cuda::serialize_cls_grad(args, stream); });
  return dcls_token;
}

}  // namespace pm::ops
