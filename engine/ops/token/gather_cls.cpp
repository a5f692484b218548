#include "engine/ops/token/gather_cls.h"

#include "engine/ops/dispatch.h"

namespace pm::ops {

Tensor gather_cls(Context& ctx, const Tensor& tokens) {
  check_activation(ctx, "gather_cls", {"tokens", tokens});
  check_rank("gather_cls", {"tokens", tokens}, 4);
  PM_CHECK(tokens.size(2) >= 1, ShapeError, "gather_cls: regions without tokens have no CLS token, shape {}",
           tokens.shape().str());
  Tensor out = Tensor::empty(ctx, {tokens.size(0), tokens.size(1), tokens.size(3)}, tokens.dtype());
  const GatherClsArgs args{tokens.raw(),   out.raw(),      tokens.size(0) * tokens.size(1),
                           tokens.size(2), tokens.size(3), tokens.dtype()};
  dispatch_device(
      ctx, "gather_cls", [&] { cpu::gather_cls(args); }, [&](auto stream) { cuda::gather_cls(args, stream); });
  return out;
}

Tensor gather_cls_grad(Context& ctx, const Tensor& dout, int64_t region_len) {
  check_activation(ctx, "gather_cls_grad", {"dout", dout});
  check_rank("gather_cls_grad", {"dout", dout}, 3);
  PM_CHECK(region_len >= 1, ShapeError, "gather_cls_grad: region_len must be at least 1, it is {}", region_len);
  Tensor dtokens = Tensor::zeros(ctx, {dout.size(0), dout.size(1), region_len, dout.size(2)}, dout.dtype());
  const GatherClsGradArgs args{dout.raw(), dtokens.raw(), dout.size(0) * dout.size(1),
                               region_len, dout.size(2),  dout.dtype()};
  dispatch_device(
      ctx, "gather_cls_grad", [&] { cpu::gather_cls_grad(args); },
      [&](auto stream) { cuda::gather_cls_grad(args, stream); });
  return dtokens;
}

}  // namespace pm::ops
