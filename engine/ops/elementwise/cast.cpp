#include "engine/ops/elementwise/cast.h"

#include "engine/ops/dispatch.h"

namespace pm::ops {

Tensor cast(Context& ctx, const Tensor& x, DType dtype) {
  check_device(ctx, "cast", {{"x", x}});
  if (x.dtype() == dtype) return x;
  check_activation(ctx, "cast", {"x", x});
  Tensor out = Tensor::empty(ctx, x.shape(), dtype);
  check_activation(ctx, "cast", {"the result", out});
  const CastArgs args{x.raw(), out.raw(), x.numel(), x.dtype(), dtype};
  dispatch_device(
      ctx, "cast", [&] { cpu::cast(args); }, [&](auto stream) { cuda::cast(args, stream); });
  return out;
}

}  // namespace pm::ops
