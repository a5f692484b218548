#include "autograd/core/reshape.h"

namespace pm {

Variable reshape(Context& ctx, const Variable& v, const Shape& shape) {
  return record(
      ctx, "reshape", v.value().reshape(shape), {v},
      [before = v.shape()](Context&, const Tensor& dout, GradSink& grads) { grads.add(0, dout.reshape(before)); });
}

}  // namespace pm
