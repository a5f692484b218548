// The block in a handful of parallel loops, because every loop ends with threads waiting for the slowest: forward
//   1. chunks of tokens: norm, in_proj                        tokens -> x, z
//   2. chunks of tokens: convolution, x_proj, dt_proj, softplus; both directions    x -> u, dt B C, delta
//   3. groups of eight channels, both directions: the recurrence over all tokens    -> y
//   4. chunks of tokens: gate, out_proj, residual             y, z -> out
// What a chunk passes from one line of the maths to the next stays in the cache. The gradient repeats 1 to 3, then
//   5. chunks of tokens: back through out_proj and the gate
//   6. segments of the sequence, last of the walk first: groups of channels back through the recurrence; rows of dB and dC
//   7. chunks of tokens: back through dt_proj and x_proj      8. the convolutions      9. in_proj      10. the norm
// and a product over all tokens for each weight. Chunks, segments and sums depend on the shape alone: the same bits for any
// number of threads. 16 states of 8 channels cost one vector exp2 each: that loop, not memory, is what bounds the block.
#include "engine/cpu/scan/block_float.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

#include "engine/cpu/conv/convolution.h"
#include "engine/cpu/core/fast_math.h"
#include "engine/cpu/core/floats.h"
#include "engine/cpu/core/isa.h"
#include "engine/cpu/gemm/products.h"
#include "engine/cpu/scan/lane_scan.h"
#include "engine/ops/conv/causal_conv1d.h"
#include "engine/ops/norm/rms_norm.h"

namespace pm::cpu {
namespace {

// Values of a call, not initialised. Those of one chunk, made inside a loop, come from the heap: memory is null.
class Values {
 public:
  Values() = default;
  Values(Backend* memory, int64_t rows, int64_t columns) : data_(memory, rows * columns), columns_(columns) {}
  float* row(int64_t row) { return data_.get() + row * columns_; }
  const float* row(int64_t row) const { return data_.get() + row * columns_; }
  Rows<float> rows(int64_t first) { return {row(first), columns_}; }
  Rows<const float> rows(int64_t first) const { return {row(first), columns_}; }

 private:
  Floats data_;
  int64_t columns_ = 0;
};

const float* floats(const void* values) { return static_cast<const float*>(values); }
float* floats(void* values) { return static_cast<float*>(values); }

// ---------------------------------------------------------------- loops over the values of a chunk
// out = x / sqrt(mean(x^2) + eps) * weight
void norm_rows(const float* x, const float* weight, float* out, int64_t rows, int64_t channels, float eps) {
  with_best_isa([&]() PM_ISA_BODY {
    for (int64_t row = 0; row < rows; ++row, x += channels, out += channels) {
      float squares = 0;
#pragma omp simd reduction(+ : squares)
      for (int64_t c = 0; c < channels; ++c) squares += x[c] * x[c];
      const float scale = 1.0f / std::sqrt(squares / static_cast<float>(channels) + eps);
#pragma omp simd
      for (int64_t c = 0; c < channels; ++c) out[c] = x[c] * scale * weight[c];
    }
  });
}

// gated = (y0 + y1) * share * silu(z); gated may be y0.
void gate(const float* y0, const float* y1, const float* z, float share, float* gated, int64_t n) {
  with_best_isa([&]() PM_ISA_BODY {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) gated[i] = (y0[i] + y1[i]) * share * z[i] * sigmoid(z[i]);
  });
}
// From dgated: dgated becomes dy of either direction, z becomes dz, y0 becomes gated.
void gate_grad(float* y0, const float* y1, float* z, float share, float* dgated, int64_t n) {
  with_best_isa([&]() PM_ISA_BODY {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) {
      const float s = sigmoid(z[i]), silu = z[i] * s, y = (y0[i] + y1[i]) * share, d = dgated[i];
      dgated[i] = d * silu * share;
      y0[i] = y * silu;
      z[i] = d * y * s * (1.0f + z[i] * (1.0f - s));
    }
  });
}

void add(float* sum, const float* term, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) sum[i] += term[i];
}

// ---------------------------------------------------------------- one call
struct Direction {
  MambaDirectionArgs weights;
  Convolution<float> conv;
  Values u;              // (batch, seq_len, d_inner)
  Values projected;      // (batch, seq_len, dt_rank + 2 * d_state): dt, B, C
  Values delta;          // (batch, seq_len, d_inner), after softplus
  Values slope;          // the derivative of softplus there; gradient only
  Values y;              // (batch, seq_len, d_inner), before the gate
  std::vector<float> A;  // (d_inner, d_state)
};

class Block {
 public:
  Block(const MambaBlockArgs& args, bool gradient, Backend& memory);
  void forward();
  void gradient(const MambaBlockGradArgs& grad);

 private:
  // fn(first row, rows) for chunks of all tokens, in parallel.
  template <typename Fn>
  void for_chunks(Fn&& fn) const {
#pragma omp parallel for schedule(dynamic)
    for (int64_t begin = 0; begin < rows_; begin += chunk_) fn(begin, std::min(chunk_, rows_ - begin));
  }
  void project_in();
  void prepare(Direction& d, int64_t entry, int64_t begin, int64_t end);
  void prepare_all();
  void scan_all();
  LaneScanArgs scan_args(int p) const;
  void scan_grad(const LaneScanGradArgs (&grads)[2], const MambaBlockGradArgs& grad);
  void direction_weight_grads(const MambaBlockGradArgs& grad, int p, const Values& ddelta, const Values& dprojected);

  const MambaBlockArgs a_;
  Backend* const memory_;
  const bool keeps_;  // what the gradient needs
  const int64_t rows_, projected_, chunk_;
  const float share_;
  Values hn_;  // (batch, seq_len, channels); gradient only
  Values x_;   // (batch, seq_len, d_inner)
  Values z_;
  std::vector<Direction> direction_;
  std::vector<LaneScan> scan_;
};

Direction make_direction(const MambaBlockArgs& a, int p, bool gradient, Backend* memory) {
  const MambaDirectionArgs& w = a.direction[p];
  const int64_t rows = a.batch * a.seq_len;
  std::vector<float> A(static_cast<size_t>(a.d_inner * a.d_state));
  std::transform(floats(w.A_log), floats(w.A_log) + A.size(), A.begin(), [](float log) { return -std::exp(log); });
  return {w,
          {floats(w.conv_weight), floats(w.conv_bias), a.seq_len, a.d_inner, a.d_conv, /*reverse=*/p == 1},
          {memory, rows, a.d_inner},
          {memory, rows, a.dt_rank + 2 * a.d_state},
          {memory, rows, a.d_inner},
          gradient ? Values(memory, rows, a.d_inner) : Values(),
          {memory, rows, a.d_inner},
          std::move(A)};
}

Block::Block(const MambaBlockArgs& args, bool gradient, Backend& memory)
    : a_(args),
      memory_(&memory),
      keeps_(gradient),
      rows_(args.batch * args.seq_len),
      projected_(args.dt_rank + 2 * args.d_state),
      chunk_(rows_per_product(rows_, args.d_inner)),
      share_(args.divide_out ? 0.5f : 1.0f),
      x_(memory_, rows_, args.d_inner),
      z_(memory_, rows_, args.d_inner) {
  if (gradient) hn_ = Values(memory_, rows_, args.channels);
  for (const int p : {0, 1}) direction_.push_back(make_direction(args, p, gradient, memory_));
}

// ---------------------------------------------------------------- forward
void Block::project_in() {
  const Rows<const float> to_x{floats(a_.in_proj), a_.channels}, to_z = to_x.from(a_.d_inner);
  for_chunks([&](int64_t row, int64_t rows) {
    Values chunk = keeps_ ? Values() : Values(nullptr, rows, a_.channels);
    Values& hn = keeps_ ? hn_ : chunk;
    const int64_t first = keeps_ ? row : 0;
    norm_rows(floats(a_.tokens) + row * a_.channels, floats(a_.norm), hn.row(first), rows, a_.channels,
              static_cast<float>(a_.norm_eps));
    times_transposed(hn.rows(first), to_x, x_.rows(row), rows, a_.d_inner, a_.channels, 0.0f);
    times_transposed(hn.rows(first), to_z, z_.rows(row), rows, a_.d_inner, a_.channels, 0.0f);
  });
}

// Tokens [begin, end) of one batch entry, from x to u, dt B C and delta.
void Block::prepare(Direction& d, int64_t entry, int64_t begin, int64_t end) {
  const int64_t first = entry * a_.seq_len, row = first + begin, rows = end - begin;
  d.conv.run(x_.row(first), d.u.row(first), begin, end);
  times_transposed(d.u.rows(row), {floats(d.weights.x_proj), a_.d_inner}, d.projected.rows(row), rows, projected_,
                   a_.d_inner, 0.0f);
  times_transposed(d.projected.rows(row), {floats(d.weights.dt_weight), a_.dt_rank}, d.delta.rows(row), rows,
                   a_.d_inner, a_.dt_rank, 0.0f);
  softplus_rows(d.delta.row(row), floats(d.weights.dt_bias), d.delta.row(row), keeps_ ? d.slope.row(row) : nullptr,
                rows, a_.d_inner);
}

void Block::prepare_all() {
  const int64_t chunks = (a_.seq_len + chunk_ - 1) / chunk_;
#pragma omp parallel for schedule(dynamic)
  for (int64_t task = 0; task < 2 * a_.batch * chunks; ++task) {
    const int64_t entry = task / 2 / chunks, begin = task / 2 % chunks * chunk_;
    prepare(direction_[static_cast<size_t>(task % 2)], entry, begin, std::min(a_.seq_len, begin + chunk_));
  }
}

LaneScanArgs Block::scan_args(int p) const {
  const Direction& d = direction_[static_cast<size_t>(p)];
  const float* B = d.projected.row(0) + a_.dt_rank;
  return {d.delta.row(0),    d.u.row(0), d.A.data(), B,          B + a_.d_state, floats(d.weights.D_skip),
          projected_,        a_.batch,   a_.seq_len, a_.d_inner, a_.d_state,
          /*reverse=*/p == 1};
}

void Block::scan_all() {
  for (const int p : {0, 1}) scan_.emplace_back(scan_args(p), keeps_, memory_);
  run_scans(scan_, std::array{direction_[0].y.row(0), direction_[1].y.row(0)});
}

void Block::forward() {
  project_in();
  prepare_all();
  scan_all();
  const Rows<const float> out_proj{floats(a_.out_proj), a_.d_inner};
  for_chunks([&](int64_t row, int64_t rows) {
    float* gated = direction_[0].y.row(row);
    gate(gated, direction_[1].y.row(row), z_.row(row), share_, gated, rows * a_.d_inner);
    float* out = floats(a_.out) + row * a_.channels;
    std::copy_n(floats(a_.tokens) + row * a_.channels, rows * a_.channels, out);
    times_transposed({gated, a_.d_inner}, out_proj, {out, a_.channels}, rows, a_.channels, a_.d_inner, 1.0f);
  });
}

// ---------------------------------------------------------------- gradient
// Both directions back through the recurrence, and the gradients of A_log, D_skip and dt_bias.
void Block::scan_grad(const LaneScanGradArgs (&grads)[2], const MambaBlockGradArgs& grad) {
  run_scan_grads(scan_, grads);
  for (const size_t p : {0, 1}) {
    float* dA_log = floats(grad.direction[p].A_log);
    scan_[p].finish_grad(dA_log, floats(grad.direction[p].D_skip), floats(grad.direction[p].dt_bias));
    for (size_t i = 0; i < direction_[p].A.size(); ++i) dA_log[i] *= direction_[p].A[i];  // A = -exp(A_log)
  }
}

// Of dt_proj and x_proj.
void Block::direction_weight_grads(const MambaBlockGradArgs& grad, int p, const Values& ddelta,
                                   const Values& dprojected) {
  const Direction& d = direction_[static_cast<size_t>(p)];
  weight_gradient(ddelta.rows(0), d.projected.rows(0), floats(grad.direction[p].dt_weight), rows_, a_.d_inner,
                  a_.dt_rank);
  weight_gradient(dprojected.rows(0), d.u.rows(0), floats(grad.direction[p].x_proj), rows_, projected_, a_.d_inner);
}

void Block::gradient(const MambaBlockGradArgs& grad) {
  project_in();
  prepare_all();
  scan_all();

  const Rows<const float> dout{floats(grad.dout), a_.channels}, in_proj{floats(a_.in_proj), a_.channels};
  Values dy(memory_, rows_, a_.d_inner);  // of either direction
  for_chunks([&](int64_t row, int64_t rows) {
    times(dout.from(row), {floats(a_.out_proj), a_.d_inner}, dy.rows(row), rows, a_.channels, a_.d_inner, 0.0f);
    gate_grad(direction_[0].y.row(row), direction_[1].y.row(row), z_.row(row), share_, dy.row(row), rows * a_.d_inner);
  });
  const Values& dz = z_;
  weight_gradient(dout, direction_[0].y.rows(0), floats(grad.out_proj), rows_, a_.channels, a_.d_inner);

  Values du[2], dprojected[2];
  LaneScanGradArgs scan_grads[2];
  for (const size_t p : {0, 1}) {
    du[p] = Values(memory_, rows_, a_.d_inner);
    dprojected[p] = Values(memory_, rows_, projected_);
    float *slope = direction_[p].slope.row(0), *dB = dprojected[p].row(0) + a_.dt_rank;
    scan_grads[p] = {dy.row(0), slope, du[p].row(0), slope, dB, dB + a_.d_state, projected_};
  }
  scan_grad(scan_grads, grad);
  for_chunks([&](int64_t row, int64_t rows) {
    for (const size_t p : {0, 1}) {
      const Direction& d = direction_[p];
      times(d.slope.rows(row), {floats(d.weights.dt_weight), a_.dt_rank}, dprojected[p].rows(row), rows, a_.d_inner,
            a_.dt_rank, 0.0f);
      times(dprojected[p].rows(row), {floats(d.weights.x_proj), a_.d_inner}, du[p].rows(row), rows, projected_,
            a_.d_inner, 1.0f);
    }
  });

  Values dx[2] = {{memory_, rows_, a_.d_inner}, std::move(dy)};
  for (const int p : {0, 1}) {
    const MambaDirectionArgs& w = a_.direction[p];
    direction_weight_grads(grad, p, direction_[static_cast<size_t>(p)].slope, dprojected[p]);
    causal_conv1d_grad({du[p].row(0), x_.row(0), w.conv_weight, w.conv_bias, dx[p].row(0),
                        grad.direction[p].conv_weight, grad.direction[p].conv_bias, a_.batch, a_.seq_len, a_.d_inner,
                        a_.d_conv, /*reverse=*/p == 1, a_.dtype});
  }
  Values dhn(memory_, rows_, a_.channels);
  for_chunks([&](int64_t row, int64_t rows) {
    add(dx[0].row(row), dx[1].row(row), rows * a_.d_inner);
    times(dx[0].rows(row), in_proj, dhn.rows(row), rows, a_.d_inner, a_.channels, 0.0f);
    times(dz.rows(row), in_proj.from(a_.d_inner), dhn.rows(row), rows, a_.d_inner, a_.channels, 1.0f);
  });
  float* din_proj = floats(grad.in_proj);
  weight_gradient(dx[0].rows(0), hn_.rows(0), din_proj, rows_, a_.d_inner, a_.channels);
  weight_gradient(dz.rows(0), hn_.rows(0), din_proj + a_.d_inner * a_.channels, rows_, a_.d_inner, a_.channels);
  rms_norm_grad(
      {dhn.row(0), a_.tokens, a_.norm, grad.dtokens, grad.norm, rows_, a_.channels, a_.norm_eps, a_.dtype, grad.dout});
}

}  // namespace

void mamba_block_float(const MambaBlockArgs& args, Backend& memory) {
  Block(args, /*gradient=*/false, memory).forward();
}
void mamba_block_grad_float(const MambaBlockGradArgs& args, Backend& memory) {
  Block(args.forward, /*gradient=*/true, memory).gradient(args);
}

// The double block keeps about as many values.
int64_t mamba_block_scratch(const MambaBlockArgs& a) {
  const int64_t projected = a.dt_rank + 2 * a.d_state;
  const int64_t row_values = 2 * a.d_inner + 2 * (3 * a.d_inner + projected);  // x, z; u, delta, y, projected twice
  return a.batch * a.seq_len * row_values * static_cast<int64_t>(size_of(a.dtype));
}
int64_t mamba_block_grad_scratch(const MambaBlockArgs& a) {
  const int64_t projected = a.dt_rank + 2 * a.d_state;
  // hn, dhn; dy, dx; slope, du and dprojected twice
  const int64_t row_values = 2 * a.channels + 2 * a.d_inner + 2 * (2 * a.d_inner + projected);
  LaneScanArgs sizes{};
  sizes.batch = a.batch;
  sizes.seq_len = a.seq_len;
  sizes.d_inner = a.d_inner;
  sizes.d_state = a.d_state;
  const int64_t kept = 2 * LaneScan(sizes, /*keep_starts=*/true).kept_floats();
  return mamba_block_scratch(a) + (a.batch * a.seq_len * row_values + kept) * static_cast<int64_t>(size_of(a.dtype));
}

}  // namespace pm::cpu
