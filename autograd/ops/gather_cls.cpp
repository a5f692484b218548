#include "autograd/ops/gather_cls.h"

#include "engine/ops/token/gather_cls.h"

namespace pm {

Variable gather_cls(Context& ctx, const Variable& tokens) {
  Tensor out = ops::gather_cls(ctx, tokens.value());
  return record(ctx, "gather_cls", std::move(out), {tokens},
                [region_len = tokens.value().size(2)](Context& c, const Tensor& dout, GradSink& grads) {
                  grads.add(0, ops::gather_cls_grad(c, dout, region_len));
                });
}

}  // namespace pm
