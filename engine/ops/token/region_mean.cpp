#include "engine/ops/token/region_mean.h"

#include "engine/ops/dispatch.h"

namespace pm::ops {

Tensor region_mean(Context& ctx, const Tensor& x) {
  check_activation(ctx, "region_mean", {"x", x});
  check_rank("region_mean", {"x", x}, 3);
  PM_CHECK(x.size(1) >= 1, ShapeError, "region_mean: there is no mean over 0 regions, shape {}", x.shape().str());
  Tensor out = Tensor::empty(ctx, {x.size(0), x.size(2)}, x.dtype());
  const RegionMeanArgs args{x.raw(), out.raw(), x.size(0), x.size(1), x.size(2), x.dtype()};
  dispatch_device(
      ctx, "region_mean", [&] { cpu::region_mean(args); }, [&](auto stream) { cuda::region_mean(args, stream); });
  return out;
}

Tensor region_mean_grad(Context& ctx, const Tensor& dout, int64_t n_regions) {
  check_activation(ctx, "region_mean_grad", {"dout", dout});
  check_rank("region_mean_grad", {"dout", dout}, 2);
  PM_CHECK(n_regions >= 1, ShapeError, "region_mean_grad: n_regions must be at least 1, it is {}", n_regions);
  Tensor dx = Tensor::empty(ctx, {dout.size(0), n_regions, dout.size(1)}, dout.dtype());
  const RegionMeanGradArgs args{dout.raw(), dx.raw(), dout.size(0), n_regions, dout.size(1), dout.dtype()};
  dispatch_device(
      ctx, "region_mean_grad", [&] { cpu::region_mean_grad(args); },
      [&](auto stream) { cuda::region_mean_grad(args, stream); });
  return dx;
}

}  // namespace pm::ops
