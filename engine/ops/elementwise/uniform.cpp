#include "engine/ops/elementwise/uniform.h"

#include <cmath>

#include "engine/ops/dispatch.h"

namespace pm::ops {

Tensor uniform(Context& ctx, const Shape& shape, DType dtype, double low, double high) {
  PM_CHECK(std::isfinite(low) && std::isfinite(high) && low <= high, Error,
           "uniform: low {} and high {} must be finite and in order", low, high);
  Tensor out = Tensor::empty(ctx, shape, dtype);
  check_activation(ctx, "uniform", {"the result", out});
  const UniformArgs args{out.raw(), out.numel(), low, high, ctx.rng().next(), dtype};
  dispatch_device(
      ctx, "uniform", [&] { cpu::uniform(args); }, [&](auto stream) { cuda::uniform(args, stream); });
  return out;
}

}  // namespace pm::ops
