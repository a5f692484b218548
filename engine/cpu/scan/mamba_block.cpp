// The block and its gradient, equation by equation, with the CPU twins of the smaller operators: the truth that the
// kernels are held against. Every intermediate value is kept whole during a call, so that each line below is one line of
// the maths. The gate silu(z) is applied by the scan of each direction instead of to the sum of both: the same product.
#include "engine/ops/scan/mamba_block.h"

#include <vector>

#include "engine/cpu/scan/block_float.h"
#include "engine/ops/conv/causal_conv1d.h"
#include "engine/ops/elementwise/neg_exp.h"
#include "engine/ops/elementwise/scaled_add.h"
#include "engine/ops/gemm/linear.h"
#include "engine/ops/norm/rms_norm.h"
#include "engine/ops/scan/selective_scan.h"

namespace pm::cpu {
namespace {

template <typename T>
std::vector<T> values(int64_t rows, int64_t columns) {
  return std::vector<T>(static_cast<size_t>(rows * columns));
}

template <typename T>
struct DirectionValues {
  std::vector<T> u;      // (batch, seq_len, d_inner)
  std::vector<T> dt;     // (batch, seq_len, dt_rank)
  std::vector<T> B, C;   // (batch, seq_len, d_state)
  std::vector<T> delta;  // (batch, seq_len, d_inner), before bias and softplus
  std::vector<T> A;      // (d_inner, d_state)
};

template <typename T>
struct BlockValues {
  std::vector<T> hn;    // (batch, seq_len, channels)
  std::vector<T> x, z;  // (batch, seq_len, d_inner)
  DirectionValues<T> direction[2];
  std::vector<T> y;  // (batch, seq_len, d_inner): (y_forward + y_reverse) * share * silu(z)
};

int64_t rows(const MambaBlockArgs& a) { return a.batch * a.seq_len; }
double share(const MambaBlockArgs& a) { return a.divide_out ? 0.5 : 1.0; }

// The columns of x * weight^T, cut into groups. x: (batch, seq_len, in_features)
void project(const MambaBlockArgs& a, const void* x, int64_t in_features, const void* weight,
             const std::vector<LinearOut>& groups) {
  int64_t out_features = 0;
  for (const LinearOut& group : groups) out_features += group.features;
  linear({x, weight, nullptr, groups, rows(a), in_features, out_features, a.dtype});
}
// dx: (batch, seq_len, in_features); dweight: (out_features, in_features)
void project_grad(const MambaBlockArgs& a, const std::vector<LinearDout>& douts, const void* x, int64_t in_features,
                  const void* weight, void* dx, void* dweight) {
  int64_t out_features = 0;
  for (const LinearDout& group : douts) out_features += group.features;
  linear_grad_input({douts, weight, dx, rows(a), in_features, out_features, a.dtype});
  linear_grad_weight({douts, x, dweight, rows(a), in_features, out_features, a.dtype});
}

// sum += term
template <typename T>
void add(std::vector<T>& sum, const std::vector<T>& term, DType dtype) {
  scaled_add({sum.data(), term.data(), sum.data(), 1.0, 1.0, 0.0, static_cast<int64_t>(sum.size()), dtype});
}

// The scan of direction p (0 forward, 1 reverse), gated. out: (batch, seq_len, d_inner) or null
template <typename T>
SelectiveScanArgs scan_args(const MambaBlockArgs& a, const BlockValues<T>& v, int p, void* out) {
  const DirectionValues<T>& d = v.direction[p];
  return {d.u.data(), d.delta.data(),         d.A.data(), d.B.data(), d.C.data(), a.direction[p].D_skip,
          v.z.data(), a.direction[p].dt_bias, out,        a.batch,    a.seq_len,  a.d_inner,
          a.d_state,  /*reverse=*/p == 1,     a.dtype};
}

// Everything but the last line of the block.
template <typename T>
BlockValues<T> compute(const MambaBlockArgs& a) {
  const int64_t n = rows(a);
  BlockValues<T> v;
  v.hn = values<T>(n, a.channels);
  rms_norm({a.tokens, a.norm, v.hn.data(), n, a.channels, a.norm_eps, a.dtype});
  v.x = values<T>(n, a.d_inner);
  v.z = values<T>(n, a.d_inner);
  project(a, v.hn.data(), a.channels, a.in_proj, {{v.x.data(), a.d_inner}, {v.z.data(), a.d_inner}});

  std::vector<T> y[2];
  for (const int p : {0, 1}) {
    const MambaDirectionArgs& w = a.direction[p];
    DirectionValues<T>& d = v.direction[p];
    d.u = values<T>(n, a.d_inner);
    causal_conv1d({v.x.data(), w.conv_weight, w.conv_bias, d.u.data(), a.batch, a.seq_len, a.d_inner, a.d_conv,
                   /*reverse=*/p == 1, a.dtype});
    d.dt = values<T>(n, a.dt_rank);
    d.B = values<T>(n, a.d_state);
    d.C = values<T>(n, a.d_state);
    project(a, d.u.data(), a.d_inner, w.x_proj,
            {{d.dt.data(), a.dt_rank}, {d.B.data(), a.d_state}, {d.C.data(), a.d_state}});
    d.delta = values<T>(n, a.d_inner);
    project(a, d.dt.data(), a.dt_rank, w.dt_weight, {{d.delta.data(), a.d_inner}});
    d.A = values<T>(a.d_inner, a.d_state);
    neg_exp({w.A_log, d.A.data(), a.d_inner * a.d_state, a.dtype});
    y[p] = values<T>(n, a.d_inner);
    selective_scan(scan_args(a, v, p, y[p].data()));
  }
  v.y = values<T>(n, a.d_inner);
  scaled_add({y[0].data(), y[1].data(), v.y.data(), share(a), share(a), 0.0, n * a.d_inner, a.dtype});
  return v;
}

template <typename T>
void forward(const MambaBlockArgs& a) {
  const BlockValues<T> v = compute<T>(a);
  project(a, v.y.data(), a.d_inner, a.out_proj, {{a.out, a.channels, a.tokens}});
}

// Parameter gradients of direction p, and what it adds to the gradients of x and z. dy: (batch, seq_len, d_inner)
template <typename T>
void direction_grad(const MambaBlockGradArgs& g, const BlockValues<T>& v, int p, const std::vector<T>& dy,
                    std::vector<T>& dx, std::vector<T>& dz) {
  const MambaBlockArgs& a = g.forward;
  const int64_t n = rows(a);
  const MambaDirectionArgs& w = a.direction[p];
  const MambaDirectionGradArgs& dw = g.direction[p];
  const DirectionValues<T>& d = v.direction[p];

  std::vector<T> du = values<T>(n, a.d_inner), ddelta = values<T>(n, a.d_inner), dA = values<T>(a.d_inner, a.d_state);
  std::vector<T> dB = values<T>(n, a.d_state), dC = values<T>(n, a.d_state), dz_p = values<T>(n, a.d_inner);
  selective_scan_grad({scan_args(a, v, p, nullptr), dy.data(), du.data(), ddelta.data(), dA.data(), dB.data(),
                       dC.data(), dw.D_skip, dz_p.data(), dw.dt_bias});
  add(dz, dz_p, a.dtype);
  neg_exp_grad({dA.data(), d.A.data(), dw.A_log, a.d_inner * a.d_state, a.dtype});

  std::vector<T> ddt = values<T>(n, a.dt_rank);
  project_grad(a, {{ddelta.data(), a.d_inner}}, d.dt.data(), a.dt_rank, w.dt_weight, ddt.data(), dw.dt_weight);
  std::vector<T> du_projected = values<T>(n, a.d_inner);
  project_grad(a, {{ddt.data(), a.dt_rank}, {dB.data(), a.d_state}, {dC.data(), a.d_state}}, d.u.data(), a.d_inner,
               w.x_proj, du_projected.data(), dw.x_proj);
  add(du, du_projected, a.dtype);

  std::vector<T> dx_p = values<T>(n, a.d_inner);
  causal_conv1d_grad({du.data(), v.x.data(), w.conv_weight, w.conv_bias, dx_p.data(), dw.conv_weight, dw.conv_bias,
                      a.batch, a.seq_len, a.d_inner, a.d_conv, /*reverse=*/p == 1, a.dtype});
  add(dx, dx_p, a.dtype);
}

template <typename T>
void gradient(const MambaBlockGradArgs& g) {
  const MambaBlockArgs& a = g.forward;
  const int64_t n = rows(a);
  const BlockValues<T> v = compute<T>(a);

  std::vector<T> dy = values<T>(n, a.d_inner);  // of y_forward and of y_reverse alike
  project_grad(a, {{g.dout, a.channels}}, v.y.data(), a.d_inner, a.out_proj, dy.data(), g.out_proj);
  scaled_add({dy.data(), nullptr, dy.data(), share(a), 0.0, 0.0, n * a.d_inner, a.dtype});

  std::vector<T> dx = values<T>(n, a.d_inner), dz = values<T>(n, a.d_inner);
  for (const int p : {0, 1}) direction_grad(g, v, p, dy, dx, dz);

  std::vector<T> dhn = values<T>(n, a.channels);
  project_grad(a, {{dx.data(), a.d_inner}, {dz.data(), a.d_inner}}, v.hn.data(), a.channels, a.in_proj, dhn.data(),
               g.in_proj);
  rms_norm_grad({dhn.data(), a.tokens, a.norm, g.dtokens, g.norm, n, a.channels, a.norm_eps, a.dtype, g.dout});
}

}  // namespace

void mamba_block(const MambaBlockArgs& args, Backend& memory) {
  if (args.dtype == DType::f32) return mamba_block_float(args, memory);
  forward<double>(args);
}

void mamba_block_grad(const MambaBlockGradArgs& args, Backend& memory) {
  if (args.forward.dtype == DType::f32) return mamba_block_grad_float(args, memory);
  gradient<double>(args);
}

}  // namespace pm::cpu
