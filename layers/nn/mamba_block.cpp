#include "layers/nn/mamba_block.h"

#include "autograd/core/recompute.h"
#include "autograd/ops/causal_conv1d.h"
#include "autograd/ops/linear.h"
#include "autograd/ops/neg_exp.h"
#include "autograd/ops/rms_norm.h"
#include "autograd/ops/scaled_add.h"
#include "autograd/ops/selective_scan.h"

namespace pm {
namespace {

// x, z, result: (batch, seq_len, d_inner)
Variable run_direction(Context& ctx, const MambaDirection& p, const Variable& x, const Variable& z, bool reverse) {
  const int64_t d_state = p.A_log.shape()[1], dt_rank = p.dt_weight.shape()[1];
  const Variable u = causal_conv1d(ctx, x, p.conv_weight, p.conv_bias, reverse);
  const std::vector<Variable> projected = linear_split(ctx, u, p.x_proj, {dt_rank, d_state, d_state});
  const Variable delta = linear(ctx, projected[0], p.dt_weight);
  return selective_scan(ctx, u, delta, neg_exp(ctx, p.A_log), projected[1], projected[2], p.D_skip, z, p.dt_bias,
                        reverse);
}

}  // namespace

Variable MambaBlock::operator()(Context& ctx, const Variable& tokens, bool recompute, int64_t spare_bytes) const {
  if (one_operator(ctx, tokens)) return mamba_block(ctx, tokens, *this, {norm_eps, divide_out, spare_bytes});
  if (!recompute) return composed(ctx, tokens);
  const auto run = [block = *this](Context& c, const std::vector<Variable>& inputs) {
    return block.composed(c, inputs[0]);
  };
  return pm::recompute(ctx, run, {tokens});
}

bool MambaBlock::one_operator(Context& ctx, const Variable& tokens) const {
  return mamba_block_covers(ctx, tokens, *this);
}

Variable MambaBlock::composed(Context& ctx, const Variable& tokens) const {
  const int64_t d_inner = out_proj.shape()[1];
  std::vector<Variable> xz = linear_split(ctx, rms_norm(ctx, tokens, norm, norm_eps), in_proj, {d_inner, d_inner});
  const Variable y_forward = run_direction(ctx, forward, xz[0], xz[1], /*reverse=*/false);
  const Variable y_backward = run_direction(ctx, backward, xz[0], xz[1], /*reverse=*/true);
  xz.clear();
  const double share = divide_out ? 0.5 : 1.0;
  return add(ctx, linear(ctx, scaled_add(ctx, y_forward, share, y_backward, share), out_proj), tokens);
}

}  // namespace pm
