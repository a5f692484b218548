// The gated selective scan on the CPU: in double the truth that the kernels are held against, in float made of the lane scan
// (lane_scan.h), softplus before it and the gate behind it.
//
// In double, work is cut into (batch, block of channels); a block walks the sequence in tiles of kTile tokens whose softplus,
// gate, B and C are prepared once. The gradient keeps the state at every tile start (d_state / kTile values per element
// of u), then walks the tiles backwards; dB and dC are summed over the blocks of a tile in block order. The blocks
// depend on the shape alone, so the sums do not depend on the number of threads.
#include "engine/ops/scan/selective_scan.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "engine/cpu/core/fast_math.h"
#include "engine/cpu/core/isa.h"
#include "engine/cpu/scan/lane_scan.h"

namespace pm::cpu {
namespace {

constexpr int kTile = 32;         // tokens prepared together
constexpr int kMaxChannels = 16;  // of a block
constexpr int kTasks = 16;        // blocks of channels to aim at, so that many cores have work at batch 1

// ---------------------------------------------------------------- typed view of the arguments
template <typename T>
struct Problem {
  const T *u, *delta, *A, *B, *C, *D_skip, *z, *delta_bias;
  T* out;
  int64_t batch, seq_len, d_inner, d_state;
  bool reverse;
  int64_t block, blocks, tiles;  // channels of a block, blocks per batch, tiles of the sequence

  explicit Problem(const SelectiveScanArgs& a)
      : u(static_cast<const T*>(a.u)),
        delta(static_cast<const T*>(a.delta)),
        A(static_cast<const T*>(a.A)),
        B(static_cast<const T*>(a.B)),
        C(static_cast<const T*>(a.C)),
        D_skip(static_cast<const T*>(a.D_skip)),
        z(static_cast<const T*>(a.z)),
        delta_bias(static_cast<const T*>(a.delta_bias)),
        out(static_cast<T*>(a.out)),
        batch(a.batch),
        seq_len(a.seq_len),
        d_inner(a.d_inner),
        d_state(a.d_state),
        reverse(a.reverse),
        block(std::clamp<int64_t>(a.batch * a.d_inner / kTasks, 1, kMaxChannels)),
        blocks((a.d_inner + block - 1) / block),
        tiles((a.seq_len + kTile - 1) / kTile) {}
  int64_t tasks() const { return batch * blocks; }
  // Row of (batch * seq_len) that step `step` of the walk reads.
  int64_t row(int64_t b, int64_t step) const { return b * seq_len + (reverse ? seq_len - 1 - step : step); }
};

// A block of channels and a tile of steps.
struct Part {
  int64_t b, first_channel, first_step;
  int channels, steps;
};

template <typename T>
Part part_of(const Problem<T>& p, int64_t task, int64_t tile) {
  const int64_t channel = task % p.blocks * p.block;
  return {task / p.blocks, channel, tile * kTile, static_cast<int>(std::min(p.block, p.d_inner - channel)),
          static_cast<int>(std::min<int64_t>(kTile, p.seq_len - tile * kTile))};
}

// Rows of a (batch, seq_len, d_inner) array, in step order: tile[step * channels + channel]. Time is the inner loop: a
// block of one channel is common and must not pay a loop per row.
template <typename T>
[[gnu::always_inline]] inline void gather(const Problem<T>& p, const Part& part, const T* source, T* tile) {
  const T* first = source + p.row(part.b, part.first_step) * p.d_inner + part.first_channel;
  const int64_t stride = p.reverse ? -p.d_inner : p.d_inner;
  for (int c = 0; c < part.channels; ++c) {
    for (int t = 0; t < part.steps; ++t) tile[t * part.channels + c] = first[t * stride + c];
  }
}
template <typename T>
[[gnu::always_inline]] inline void scatter(const Problem<T>& p, const Part& part, const T* tile, T* destination) {
  T* first = destination + p.row(part.b, part.first_step) * p.d_inner + part.first_channel;
  const int64_t stride = p.reverse ? -p.d_inner : p.d_inner;
  for (int c = 0; c < part.channels; ++c) {
    for (int t = 0; t < part.steps; ++t) first[t * stride + c] = tile[t * part.channels + c];
  }
}
// Rows of B or C, padded with zeros to kStates.
template <int kStates, typename T>
[[gnu::always_inline]] inline void gather_states(const Problem<T>& p, const Part& part, const T* source, T* tile) {
  for (int t = 0; t < part.steps; ++t) {
    const T* row = source + p.row(part.b, part.first_step + t) * p.d_state;
    if (p.d_state == kStates) {
      for (int n = 0; n < kStates; ++n) tile[t * kStates + n] = row[n];
    } else {
      for (int n = 0; n < kStates; ++n) tile[t * kStates + n] = n < p.d_state ? row[n] : T{0};
    }
  }
}

// raw becomes delta, u becomes delta * u.
template <typename T>
[[gnu::always_inline]] inline void prepare_delta(const Problem<T>& p, const Part& part, T* delta, T* delta_u) {
  for (int c = 0; c < part.channels; ++c) {
    const T bias = p.delta_bias[part.first_channel + c];
    for (int t = 0; t < part.steps; ++t) delta[t * part.channels + c] += bias;
  }
  for (int i = 0; i < part.steps * part.channels; ++i) {
    delta[i] = softplus(delta[i]);
    delta_u[i] *= delta[i];
  }
}

// A of a block, padded with zeros: a padded state decays by 1 from 0 and stays 0.
template <int kStates, typename T>
[[gnu::always_inline]] inline void load_A(const Problem<T>& p, const Part& part, T* padded) {
  for (int c = 0; c < part.channels; ++c) {
    const T* row = p.A + (part.first_channel + c) * p.d_state;
    for (int n = 0; n < kStates; ++n) padded[c * kStates + n] = n < p.d_state ? row[n] : T{0};
  }
}

// ---------------------------------------------------------------- forward
// One block over the whole sequence. `starts`, when not null, receives the state before every tile instead of the
// output: (tiles, block, kStates).
template <typename T, int kStates>
[[gnu::always_inline]] inline void scan_block(const Problem<T>& p, int64_t task, T* starts) {
  T a[kMaxChannels * kStates], state[kMaxChannels * kStates] = {};
  T delta[kTile * kMaxChannels], delta_u[kTile * kMaxChannels], u[kTile * kMaxChannels], y[kTile * kMaxChannels];
  T B[kTile * kStates], C[kTile * kStates];
  load_A<kStates>(p, part_of(p, task, 0), a);
  for (int64_t tile = 0; tile < p.tiles; ++tile) {
    const Part part = part_of(p, task, tile);
    const int count = part.steps * part.channels;
    if (starts != nullptr) std::copy_n(state, part.channels * kStates, starts + tile * p.block * kStates);
    gather(p, part, p.u, u);
    gather(p, part, p.delta, delta);
    gather_states<kStates>(p, part, p.B, B);
    gather_states<kStates>(p, part, p.C, C);
    std::copy_n(u, count, delta_u);
    prepare_delta(p, part, delta, delta_u);
    for (int t = 0; t < part.steps; ++t) {
      for (int c = 0; c < part.channels; ++c) {
        const T d = delta[t * part.channels + c], du = delta_u[t * part.channels + c];
        T* s = state + c * kStates;
        T sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int n = 0; n < kStates; ++n) {
          s[n] = std::exp(d * a[c * kStates + n]) * s[n] + du * B[t * kStates + n];
          sum += s[n] * C[t * kStates + n];
        }
        y[t * part.channels + c] = sum + p.D_skip[part.first_channel + c] * u[t * part.channels + c];
      }
    }
    if (starts != nullptr) continue;
    gather(p, part, p.z, u);
    for (int i = 0; i < count; ++i) y[i] *= u[i] * sigmoid(u[i]);
    scatter(p, part, y, p.out);
  }
}

// ---------------------------------------------------------------- gradient
template <typename T>
struct GradOut {
  const T* dout;
  T *du, *ddelta, *dz;
  const T* starts;     // (tasks, tiles, block, kStates)
  T* adjoint;          // (tasks, block, kStates): decay times adjoint of the step after the tile
  T* partial;          // (tasks, kTile, 2 * kStates): dB and dC of a tile, summed over the block
  double* parameters;  // (tasks, block, kStates + 2): dA, dD_skip, ddelta_bias so far
};

// One channel of a tile. Strides: `channels` between steps of delta, u and g. Fills y and the two sums over states.
template <typename T, int kStates>
[[gnu::always_inline]] inline void grad_channel(int steps, int channels, const T* delta, const T* u, const T* g,
                                                const T* a, const T* B, const T* C, const T* start, T* q, T* y,
                                                T* sum_decay, T* sum_B, T* dA, T* partial) {
  T decays[kTile * kStates], states[(kTile + 1) * kStates];
  std::copy_n(start, kStates, states);
  for (int t = 0; t < steps; ++t) {
    const T d = delta[t * channels], du = d * u[t * channels];
    T sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int n = 0; n < kStates; ++n) {
      decays[t * kStates + n] = std::exp(d * a[n]);
      const T s = decays[t * kStates + n] * states[t * kStates + n] + du * B[t * kStates + n];
      states[(t + 1) * kStates + n] = s;
      sum += s * C[t * kStates + n];
    }
    y[t * channels] = sum;
  }
  for (int t = steps - 1; t >= 0; --t) {
    const T d = delta[t * channels], du = d * u[t * channels], gt = g[t * channels];
    T sum_h_decay = 0, sum_h_B = 0;
#pragma omp simd reduction(+ : sum_h_decay, sum_h_B)
    for (int n = 0; n < kStates; ++n) {
      const T h = C[t * kStates + n] * gt + q[n];
      const T carried = h * decays[t * kStates + n] * states[t * kStates + n];
      sum_h_decay += carried * a[n];
      sum_h_B += h * B[t * kStates + n];
      dA[n] += carried * d;
      partial[t * 2 * kStates + n] += h * du;
      partial[t * 2 * kStates + kStates + n] += gt * states[(t + 1) * kStates + n];
      q[n] = decays[t * kStates + n] * h;
    }
    sum_decay[t * channels] = sum_h_decay;
    sum_B[t * channels] = sum_h_B;
  }
}

template <typename T, int kStates>
[[gnu::always_inline]] inline void grad_tile(const Problem<T>& p, const GradOut<T>& out, int64_t task, int64_t tile) {
  constexpr int kItems = kTile * kMaxChannels;
  const Part part = part_of(p, task, tile);
  const int channels = part.channels, count = part.steps * channels;
  T a[kMaxChannels * kStates], B[kTile * kStates], C[kTile * kStates], dA[kMaxChannels * kStates] = {};
  T u[kItems], raw[kItems], delta[kItems], unused[kItems], z[kItems], dout[kItems], g[kItems];
  T y[kItems], sum_decay[kItems], sum_B[kItems];
  load_A<kStates>(p, part, a);
  gather(p, part, p.u, u);
  gather(p, part, p.delta, delta);
  gather(p, part, p.z, z);
  gather(p, part, out.dout, dout);
  gather_states<kStates>(p, part, p.B, B);
  gather_states<kStates>(p, part, p.C, C);
  std::copy_n(delta, count, raw);
  std::copy_n(u, count, unused);
  prepare_delta(p, part, delta, unused);
  for (int i = 0; i < count; ++i) g[i] = dout[i] * z[i] * sigmoid(z[i]);
  T* partial = out.partial + task * kTile * 2 * kStates;
  std::fill_n(partial, part.steps * 2 * kStates, T{0});
  for (int c = 0; c < channels; ++c) {
    grad_channel<T, kStates>(part.steps, channels, delta + c, u + c, g + c, a + c * kStates, B, C,
                             out.starts + ((task * p.tiles + tile) * p.block + c) * kStates,
                             out.adjoint + (task * p.block + c) * kStates, y + c, sum_decay + c, sum_B + c,
                             dA + c * kStates, partial);
  }
  for (int t = 0; t < part.steps; ++t) {
    for (int c = 0; c < channels; ++c) {
      const int i = t * channels + c;
      const T D = p.D_skip[part.first_channel + c], sig = sigmoid(z[i]);
      double* sums = out.parameters + (task * p.block + c) * (kStates + 2) + kStates;
      dout[i] *= (y[i] + D * u[i]) * sig * (T{1} + z[i] * (T{1} - sig));
      y[i] = D * g[i] + delta[i] * sum_B[i];
      const T x = raw[i] + p.delta_bias[part.first_channel + c];
      sum_decay[i] = (sum_decay[i] + u[i] * sum_B[i]) * (x > T{20} ? T{1} : sigmoid(x));
      sums[0] += static_cast<double>(g[i]) * static_cast<double>(u[i]);
      sums[1] += static_cast<double>(sum_decay[i]);
    }
  }
  for (int c = 0; c < channels; ++c) {
    double* sums = out.parameters + (task * p.block + c) * (kStates + 2);
    for (int n = 0; n < kStates; ++n) sums[n] += static_cast<double>(dA[c * kStates + n]);
  }
  scatter(p, part, dout, out.dz);
  scatter(p, part, y, out.du);
  scatter(p, part, sum_decay, out.ddelta);
}

// ---------------------------------------------------------------- drivers
template <typename T, int kStates>
void scan(const SelectiveScanArgs& args) {
  const Problem<T> p(args);
#pragma omp parallel for schedule(dynamic)
  for (int64_t task = 0; task < p.tasks(); ++task) scan_block<T, kStates>(p, task, nullptr);
}

// dB and dC of one token: the blocks of its batch in order.
template <typename T, int kStates>
void sum_blocks(const Problem<T>& p, const T* partial, int64_t b, int64_t step, T* dB, T* dC) {
  const int64_t row = p.row(b, step) * p.d_state;
  const T* first = partial + (b * p.blocks * kTile + step % kTile) * 2 * kStates;
  for (int64_t n = 0; n < p.d_state; ++n) {
    T sum_B = 0, sum_C = 0;
    for (int64_t block = 0; block < p.blocks; ++block) {
      sum_B += first[block * kTile * 2 * kStates + n];
      sum_C += first[block * kTile * 2 * kStates + kStates + n];
    }
    dB[row + n] = sum_B;
    dC[row + n] = sum_C;
  }
}

// Parameter gradients: the batches in order.
template <typename T, int kStates>
void sum_batches(const Problem<T>& p, const std::vector<double>& parameters, const SelectiveScanGradArgs& args) {
  for (int64_t channel = 0; channel < p.d_inner; ++channel) {
    const auto total = [&](int64_t column) {
      double sum = 0.0;
      for (int64_t b = 0; b < p.batch; ++b) {
        const int64_t task = b * p.blocks + channel / p.block;
        sum += parameters[static_cast<size_t>((task * p.block + channel % p.block) * (kStates + 2) + column)];
      }
      return static_cast<T>(sum);
    };
    for (int64_t n = 0; n < p.d_state; ++n) static_cast<T*>(args.dA)[channel * p.d_state + n] = total(n);
    static_cast<T*>(args.dD_skip)[channel] = total(kStates);
    static_cast<T*>(args.ddelta_bias)[channel] = total(kStates + 1);
  }
}

template <typename T, int kStates>
void scan_grad(const SelectiveScanGradArgs& args) {
  const Problem<T> p(args.forward);
  const auto count = [](int64_t n) { return static_cast<size_t>(n); };
  std::vector<T> starts(count(p.tasks() * p.tiles * p.block * kStates));
  std::vector<T> adjoint(count(p.tasks() * p.block * kStates)), partial(count(p.tasks() * kTile * 2 * kStates));
  std::vector<double> parameters(count(p.tasks() * p.block * (kStates + 2)));
  const GradOut<T> out{static_cast<const T*>(args.dout),
                       static_cast<T*>(args.du),
                       static_cast<T*>(args.ddelta),
                       static_cast<T*>(args.dz),
                       starts.data(),
                       adjoint.data(),
                       partial.data(),
                       parameters.data()};
#pragma omp parallel
  {
#pragma omp for schedule(dynamic)
    for (int64_t task = 0; task < p.tasks(); ++task) {
      scan_block<T, kStates>(p, task, starts.data() + task * p.tiles * p.block * kStates);
    }
    for (int64_t tile = p.tiles - 1; tile >= 0; --tile) {
#pragma omp for schedule(dynamic)
      for (int64_t task = 0; task < p.tasks(); ++task) grad_tile<T, kStates>(p, out, task, tile);
      const int64_t first = tile * kTile, steps = std::min<int64_t>(kTile, p.seq_len - first);
#pragma omp for
      for (int64_t token = 0; token < p.batch * steps; ++token) {
        sum_blocks<T, kStates>(p, partial.data(), token / steps, first + token % steps, static_cast<T*>(args.dB),
                               static_cast<T*>(args.dC));
      }
    }
  }
  sum_batches<T, kStates>(p, parameters, args);
}

// Calls fn with d_state rounded up to 8, 16, 32 or 64.
template <typename Fn>
void dispatch_states(int64_t d_state, Fn&& fn) {
  if (d_state <= 8) return fn.template operator()<8>();
  if (d_state <= 16) return fn.template operator()<16>();
  if (d_state <= 32) return fn.template operator()<32>();
  return fn.template operator()<64>();
}

// ---------------------------------------------------------------- float
constexpr int64_t kRows = 512;  // tokens that softplus and gate do at a time

Floats floats(int64_t count) { return {nullptr, count}; }

// fn(row, rows) for all tokens, in parallel.
template <typename Fn>
void for_rows(const SelectiveScanArgs& a, Fn&& fn) {
  const int64_t rows = a.batch * a.seq_len;
#pragma omp parallel for
  for (int64_t row = 0; row < rows; row += kRows) fn(row, std::min(kRows, rows - row));
}

// delta receives softplus of the raw values, slope, unless null, its derivative.
LaneScan lane_scan(const SelectiveScanArgs& a, float* delta, float* slope) {
  for_rows(a, [&](int64_t row, int64_t rows) {
    const int64_t at = row * a.d_inner;
    softplus_rows(static_cast<const float*>(a.delta) + at, static_cast<const float*>(a.delta_bias), delta + at,
                  slope == nullptr ? nullptr : slope + at, rows, a.d_inner);
  });
  return {{delta, static_cast<const float*>(a.u), static_cast<const float*>(a.A), static_cast<const float*>(a.B),
           static_cast<const float*>(a.C), static_cast<const float*>(a.D_skip), a.d_state, a.batch, a.seq_len,
           a.d_inner, a.d_state, a.reverse},
          /*keep_starts=*/slope != nullptr};
}

void scan_float(const SelectiveScanArgs& a) {
  const Floats delta = floats(a.batch * a.seq_len * a.d_inner);
  LaneScan scan[] = {lane_scan(a, delta.get(), nullptr)};
  float* out[] = {static_cast<float*>(a.out)};
  run_scans(scan, out);
  for_rows(a, [&](int64_t row, int64_t rows) {
    const float* z = static_cast<const float*>(a.z) + row * a.d_inner;
    float* y = out[0] + row * a.d_inner;
    with_best_isa([&]() PM_ISA_BODY {
#pragma omp simd
      for (int64_t i = 0; i < rows * a.d_inner; ++i) y[i] *= z[i] * sigmoid(z[i]);
    });
  });
}

void scan_grad_float(const SelectiveScanGradArgs& args) {
  const SelectiveScanArgs& a = args.forward;
  const int64_t n = a.batch * a.seq_len * a.d_inner;
  const Floats delta = floats(n), slope = floats(n), y = floats(n);
  LaneScan scan[] = {lane_scan(a, delta.get(), slope.get())};
  float* outs[] = {y.get()};
  run_scans(scan, outs);
  for_rows(a, [&](int64_t row, int64_t rows) {
    const int64_t at = row * a.d_inner;
    const float *z = static_cast<const float*>(a.z) + at, *dout = static_cast<const float*>(args.dout) + at;
    float *dz = static_cast<float*>(args.dz) + at, *dy = y.get() + at;  // y becomes its gradient
    with_best_isa([&]() PM_ISA_BODY {
#pragma omp simd
      for (int64_t i = 0; i < rows * a.d_inner; ++i) {
        const float s = sigmoid(z[i]);
        dz[i] = dout[i] * dy[i] * s * (1.0f + z[i] * (1.0f - s));
        dy[i] = dout[i] * z[i] * s;
      }
    });
  });
  const LaneScanGradArgs grads[] = {{y.get(), slope.get(), static_cast<float*>(args.du),
                                     static_cast<float*>(args.ddelta), static_cast<float*>(args.dB),
                                     static_cast<float*>(args.dC), a.d_state}};
  run_scan_grads(scan, grads);
  scan[0].finish_grad(static_cast<float*>(args.dA), static_cast<float*>(args.dD_skip),
                      static_cast<float*>(args.ddelta_bias));
}

}  // namespace

void selective_scan(const SelectiveScanArgs& args) {
  if (args.dtype == DType::f32) return scan_float(args);
  dispatch_states(args.d_state, [&]<int kStates>() { scan<double, kStates>(args); });
}

void selective_scan_grad(const SelectiveScanGradArgs& args) {
  if (args.forward.dtype == DType::f32) return scan_grad_float(args);
  dispatch_states(args.forward.d_state, [&]<int kStates>() { scan_grad<double, kStates>(args); });
}

}  // namespace pm::cpu
