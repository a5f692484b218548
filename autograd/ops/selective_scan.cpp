#include "autograd/ops/selective_scan.h"

#include "engine/ops/scan/selective_scan.h"

namespace pm {

Variable selective_scan(Context& ctx, const Variable& u, const Variable& delta, const Variable& A, const Variable& B,
                        const Variable& C, const Variable& D_skip, const Variable& z, const Variable& delta_bias,
                        bool reverse) {
  Tensor out = ops::selective_scan(ctx, u.value(), delta.value(), A.value(), B.value(), C.value(), D_skip.value(),
                                   z.value(), delta_bias.value(), reverse);
  return record(ctx, "selective_scan", std::move(out), {u, delta, A, B, C, D_skip, z, delta_bias},
                [us = u.save(), deltas = delta.save(), As = A.save(), Bs = B.save(), Cs = C.save(), Ds = D_skip.save(),
                 zs = z.save(), biases = delta_bias.save(), reverse](Context& c, const Tensor& dout, GradSink& grads) {
                  ops::SelectiveScanGrads d =
                      ops::selective_scan_grad(c, dout, us.tensor(), deltas.tensor(), As.tensor(), Bs.tensor(),
                                               Cs.tensor(), Ds.tensor(), zs.tensor(), biases.tensor(), reverse);
                  Tensor* const ordered[] = {&d.du, &d.ddelta, &d.dA, &d.dB, &d.dC, &d.dD_skip, &d.dz, &d.ddelta_bias};
                  for (size_t i = 0; i < std::size(ordered); ++i) grads.add(i, std::move(*ordered[i]));
                });
}

}  // namespace pm
