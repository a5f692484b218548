#include "autograd/ops/serialize.h"

namespace pm {

Variable serialize(Context& ctx, const Variable& image, const Variable& cls_token, const SerializeOptions& options) {
  Tensor tokens = ops::serialize(ctx, image.value(), cls_token.value(), options);
  const bool bytes = image.value().dtype() == DType::u8;
  const int64_t height = image.value().size(bytes ? 1 : 2), width = image.value().size(bytes ? 2 : 3);
  return record(ctx, "serialize", std::move(tokens), {image, cls_token},
                [bytes, height, width, options](Context& c, const Tensor& dout, GradSink& grads) {
                  if (!bytes && grads.wants(0)) {
                    grads.add(0, ops::deserialize(c, dout, height, width, options.region_size, options.scan));
                  }
                  if (grads.wants(1)) grads.add(1, ops::serialize_cls_grad(c, dout));
                });
}

}  // namespace pm
