#include "autograd/ops/region_mean.h"

#include "engine/ops/token/region_mean.h"

namespace pm {

Variable region_mean(Context& ctx, const Variable& x) {
  Tensor out = ops::region_mean(ctx, x.value());
  return record(ctx, "region_mean", std::move(out), {x},
                [n_regions = x.value().size(1)](Context& c, const Tensor& dout, GradSink& grads) {
                  grads.add(0, ops::region_mean_grad(c, dout, n_regions));
                });
}

}  // namespace pm
