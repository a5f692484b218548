#include "autograd/ops/cast.h"

#include "engine/ops/elementwise/cast.h"

namespace pm {

Variable cast(Context& ctx, const Variable& x, DType dtype) {
  const DType from = x.value().dtype();
  if (from == dtype) return x;
  return record(ctx, "cast", ops::cast(ctx, x.value(), dtype), {x},
                [from](Context& c, const Tensor& dout, GradSink& grads) { grads.add(0, ops::cast(c, dout, from)); });
}

}  // namespace pm
