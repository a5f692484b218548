#include "engine/cpu/scan/lane_scan.h"

#include <algorithm>

#include "engine/cpu/core/isa.h"
#include "engine/cpu/core/lanes.h"

namespace pm::cpu {
namespace {

constexpr int kTile = 16;              // steps between two kept states
constexpr int64_t kSegment = 2048;     // steps whose dB and dC wait to be summed, a multiple of kTile
constexpr int64_t kAhead = 12;         // steps between fetching a row into the cache and using it
constexpr int64_t kGradientTasks = 8;  // blocks of one direction to aim at: each needs its own dB and dC of a segment

// d_state rounded up: the states of a group are an array of fixed size, so that they stay in registers.
int64_t rounded_states(int64_t d_state) { return d_state <= 8 ? 8 : d_state <= 16 ? 16 : d_state <= 32 ? 32 : 64; }

template <typename Fn>
void dispatch_states(int64_t states, Fn&& fn) {
  switch (states) {
    case 8:
      return fn.template operator()<8>();
    case 16:
      return fn.template operator()<16>();
    case 32:
      return fn.template operator()<32>();
    default:
      return fn.template operator()<64>();
  }
}

size_t size(int64_t count) { return static_cast<size_t>(count); }

template <int kStates>
[[gnu::always_inline]] inline void copy_row(const float* source, int64_t d_state, float* row) {
  if (d_state == kStates) {
    std::memcpy(row, source, kStates * sizeof(float));
  } else {
    for (int n = 0; n < kStates; ++n) row[n] = n < d_state ? source[n] : 0.0f;
  }
}

// The values of a later step: a row is long, the walk takes 32 bytes of it, and processors do not guess such strides well.
[[gnu::always_inline]] inline void prefetch(const float* value) { __builtin_prefetch(value); }

// sums[lane] += v[lane] in double.
[[gnu::always_inline]] inline void add_lanes(double* sums, const Lanes& v) {
  for (int i = 0; i < kLanes; ++i) sums[i] += static_cast<double>(v[i]);
}

}  // namespace

// Eight channels of one batch entry.
struct LaneScan::Group {
  int64_t entry, index;  // index: among the groups of all batch entries
  int64_t channel;       // the first
  int count;             // channels, at most kLanes
};

LaneScan::LaneScan(const LaneScanArgs& args, bool keep_starts, Backend* memory)
    : args_(args), keep_starts_(keep_starts), memory_(memory), states_(rounded_states(args.d_state)) {
  groups_ = (args.d_inner + kLanes - 1) / kLanes;
  const int64_t wanted = std::max<int64_t>(1, kGradientTasks / std::max<int64_t>(1, args.batch));
  block_groups_ = keep_starts ? (groups_ + wanted - 1) / wanted : 1;
  blocks_ = (groups_ + block_groups_ - 1) / block_groups_;
  tiles_ = (args.seq_len + kTile - 1) / kTile;
}

int64_t LaneScan::starts_floats() const { return args_.batch * groups_ * tiles_ * states_ * kLanes; }
int64_t LaneScan::partial_floats() const { return tasks() * std::min(kSegment, tiles_ * kTile) * 2 * states_; }
int64_t LaneScan::kept_floats() const { return starts_floats() + partial_floats(); }

void LaneScan::start() {
  if (keep_starts_) starts_ = Floats(memory_, starts_floats());
}

int64_t LaneScan::row(int64_t entry, int64_t step) const {
  return entry * args_.seq_len + (args_.reverse ? args_.seq_len - 1 - step : step);
}
LaneScan::Group LaneScan::group_of(int64_t task, int64_t index) const {
  const int64_t entry = task / blocks_, group = task % blocks_ * block_groups_ + index;
  return {entry, entry * groups_ + group, group * kLanes,
          static_cast<int>(std::min<int64_t>(kLanes, args_.d_inner - group * kLanes))};
}
int64_t LaneScan::groups_of(int64_t task) const {
  return std::min(block_groups_, groups_ - task % blocks_ * block_groups_);
}

// ---------------------------------------------------------------- forward
template <int kStates>
[[gnu::always_inline]] inline void LaneScan::run_group(const Group& group, float* y, float* starts) const {
  const int64_t d_state = args_.d_state;
  Lanes a[kStates] = {}, state[kStates] = {};
  for (int i = 0; i < group.count; ++i) {
    for (int n = 0; n < d_state; ++n) a[n][i] = args_.A[(group.channel + i) * d_state + n] * kLog2e;
  }
  const Lanes D = load_lanes(args_.D_skip + group.channel, group.count);
  float B[kStates], C[kStates];
  for (int64_t step = 0; step < args_.seq_len; ++step) {
    if (starts != nullptr && step % kTile == 0) {
      std::memcpy(starts, state, sizeof(state));
      starts += kStates * kLanes;
    }
    const int64_t at = row(group.entry, step), element = at * args_.d_inner + group.channel;
    const int64_t later = row(group.entry, std::min(step + kAhead, args_.seq_len - 1));
    prefetch(args_.delta + later * args_.d_inner + group.channel);
    prefetch(args_.u + later * args_.d_inner + group.channel);
    prefetch(args_.B + later * args_.state_stride);
    prefetch(args_.C + later * args_.state_stride);
    copy_row<kStates>(args_.B + at * args_.state_stride, d_state, B);
    copy_row<kStates>(args_.C + at * args_.state_stride, d_state, C);
    const Lanes delta = load_lanes(args_.delta + element, group.count);
    const Lanes u = load_lanes(args_.u + element, group.count);
    const Lanes delta_u = delta * u;
    Lanes sum[4] = {D * u};  // four chains of additions instead of one
#pragma GCC unroll 16
    for (int n = 0; n < kStates; ++n) {
      state[n] = exp2_lanes(delta * a[n]) * state[n] + delta_u * B[n];
      sum[n % 4] += state[n] * C[n];
    }
    store_lanes(y + element, (sum[0] + sum[1]) + (sum[2] + sum[3]), group.count);
  }
}

void LaneScan::run(int64_t task, float* y) {
  for (int64_t i = 0; i < groups_of(task); ++i) {
    const Group group = group_of(task, i);
    float* starts = keep_starts_ ? starts_.get() + group.index * tiles_ * states_ * kLanes : nullptr;
    dispatch_states(states_,
                    [&]<int kStates>() { with_best_isa([&]() PM_ISA_BODY { run_group<kStates>(group, y, starts); }); });
  }
}

// ---------------------------------------------------------------- gradient
void LaneScan::start_grad() {
  partial_ = Floats(memory_, partial_floats());
  adjoint_.assign(size(args_.batch * groups_ * states_ * kLanes), 0.0f);
  sums_.assign(size(args_.batch * groups_ * (states_ + 2) * kLanes), 0.0);
}

int64_t LaneScan::segments() const { return (args_.seq_len + kSegment - 1) / kSegment; }
int64_t LaneScan::segment_rows(int64_t segment) const {
  return args_.batch * std::min(kSegment, args_.seq_len - segment * kSegment);
}

// One group over the tiles of a segment, last tile first. partial: (segment, 2 * states); the first group of a block sets it,
// the others add.
template <int kStates>
[[gnu::always_inline]] inline void LaneScan::run_grad_group(const LaneScanGradArgs& grad, const Group& group,
                                                            int64_t segment, float* partial, bool first) {
  const int64_t d_state = args_.d_state;
  Lanes a[kStates] = {}, q[kStates];
  Lanes decays[kTile][kStates], states[kTile + 1][kStates], delta[kTile], u[kTile], to_B[kStates], to_C[kStates];
  float B[kTile][kStates], C[kTile][kStates];
  for (int i = 0; i < group.count; ++i) {
    for (int n = 0; n < d_state; ++n) a[n][i] = args_.A[(group.channel + i) * d_state + n] * kLog2e;
  }
  const Lanes D = load_lanes(args_.D_skip + group.channel, group.count);
  float* adjoint = adjoint_.data() + group.index * kStates * kLanes;
  double* sums = sums_.data() + group.index * (kStates + 2) * kLanes;
  std::memcpy(q, adjoint, sizeof(q));
  const int64_t begin = segment * kSegment, end = std::min(args_.seq_len, begin + kSegment);
  for (int64_t tile = (end - 1) / kTile; tile >= begin / kTile; --tile) {
    const int steps = static_cast<int>(std::min<int64_t>(kTile, end - tile * kTile));
    for (int t = 0; t < kTile; ++t) {  // the tile that comes next
      const int64_t later = row(group.entry, std::max<int64_t>(0, (tile - 1) * kTile + t));
      const int64_t element = later * args_.d_inner + group.channel;
      prefetch(args_.delta + element);
      prefetch(args_.u + element);
      prefetch(grad.dy + element);
      prefetch(grad.slope + element);
      prefetch(args_.B + later * args_.state_stride);
      prefetch(args_.C + later * args_.state_stride);
    }
    std::memcpy(states[0], starts_.get() + (group.index * tiles_ + tile) * kStates * kLanes, sizeof(states[0]));
    for (int t = 0; t < steps; ++t) {
      const int64_t at = row(group.entry, tile * kTile + t), element = at * args_.d_inner + group.channel;
      copy_row<kStates>(args_.B + at * args_.state_stride, d_state, B[t]);
      copy_row<kStates>(args_.C + at * args_.state_stride, d_state, C[t]);
      delta[t] = load_lanes(args_.delta + element, group.count);
      u[t] = load_lanes(args_.u + element, group.count);
      const Lanes delta_u = delta[t] * u[t];
#pragma GCC unroll 16
      for (int n = 0; n < kStates; ++n) {
        decays[t][n] = exp2_lanes(delta[t] * a[n]);
        states[t + 1][n] = decays[t][n] * states[t][n] + delta_u * B[t][n];
      }
    }
    Lanes dA[kStates] = {}, dD = {}, ddelta_sum = {};
    for (int t = steps - 1; t >= 0; --t) {
      const int64_t at = row(group.entry, tile * kTile + t), element = at * args_.d_inner + group.channel;
      const Lanes g = load_lanes(grad.dy + element, group.count), delta_u = delta[t] * u[t];
      Lanes sum_decay = {}, sum_B = {};
#pragma GCC unroll 16
      for (int n = 0; n < kStates; ++n) {
        const Lanes h = g * C[t][n] + q[n];
        q[n] = decays[t][n] * h;
        const Lanes carried = q[n] * states[t][n];
        sum_decay += carried * a[n];
        sum_B += h * B[t][n];
        dA[n] += carried * delta[t];
        to_B[n] = h * delta_u;
        to_C[n] = g * states[t + 1][n];
      }
      float* row_sums = partial + (tile * kTile + t - begin) * 2 * kStates;
#pragma GCC unroll 8
      for (int n = 0; n < kStates; n += kLanes) {
        Lanes dB = lane_sums(to_B + n), dC = lane_sums(to_C + n);
        if (!first) {
          dB += load_lanes(row_sums + n, kLanes);
          dC += load_lanes(row_sums + kStates + n, kLanes);
        }
        store_lanes(row_sums + n, dB, kLanes);
        store_lanes(row_sums + kStates + n, dC, kLanes);
      }
      const Lanes ddelta = (sum_decay * (1.0f / kLog2e) + u[t] * sum_B) * load_lanes(grad.slope + element, group.count);
      dD += g * u[t];
      ddelta_sum += ddelta;
      store_lanes(grad.du + element, D * g + delta[t] * sum_B, group.count);
      store_lanes(grad.ddelta + element, ddelta, group.count);
    }
    for (int n = 0; n < kStates; ++n) add_lanes(sums + n * kLanes, dA[n]);
    add_lanes(sums + kStates * kLanes, dD);
    add_lanes(sums + (kStates + 1) * kLanes, ddelta_sum);
  }
  std::memcpy(adjoint, q, sizeof(q));
}

void LaneScan::run_grad(const LaneScanGradArgs& grad, int64_t task, int64_t segment) {
  float* partial = partial_.get() + task * std::min(kSegment, tiles_ * kTile) * 2 * states_;
  for (int64_t i = 0; i < groups_of(task); ++i) {
    const Group group = group_of(task, i);
    dispatch_states(states_, [&]<int kStates>() {
      with_best_isa([&]() PM_ISA_BODY { run_grad_group<kStates>(grad, group, segment, partial, i == 0); });
    });
  }
}

void LaneScan::sum_states(const LaneScanGradArgs& grad, int64_t segment, int64_t begin, int64_t end) const {
  const int64_t steps = segment_rows(segment) / args_.batch, stride = std::min(kSegment, tiles_ * kTile) * 2 * states_;
  for (int64_t i = begin; i < end; ++i) {
    const int64_t entry = i / steps, step = i % steps, at = row(entry, segment * kSegment + step);
    const float* partial = partial_.get() + entry * blocks_ * stride + step * 2 * states_;
    float *dB = grad.dB + at * grad.dstate_stride, *dC = grad.dC + at * grad.dstate_stride;
    for (int64_t n = 0; n < args_.d_state; ++n) {
      dB[n] = partial[n];
      dC[n] = partial[states_ + n];
    }
    for (int64_t block = 1; block < blocks_; ++block) {
      partial += stride;
      for (int64_t n = 0; n < args_.d_state; ++n) {
        dB[n] += partial[n];
        dC[n] += partial[states_ + n];
      }
    }
  }
}

void LaneScan::finish_grad(float* dA, float* dD_skip, float* ddelta_sum) const {
  for (int64_t channel = 0; channel < args_.d_inner; ++channel) {
    const auto total = [&](int64_t column) {
      double sum = 0.0;
      for (int64_t entry = 0; entry < args_.batch; ++entry) {
        const int64_t group = entry * groups_ + channel / kLanes;
        sum += sums_[size((group * (states_ + 2) + column) * kLanes + channel % kLanes)];
      }
      return static_cast<float>(sum);
    };
    for (int64_t n = 0; n < args_.d_state; ++n) dA[channel * args_.d_state + n] = total(n);
    dD_skip[channel] = total(states_);
    ddelta_sum[channel] = total(states_ + 1);
  }
}

// ---------------------------------------------------------------- several scans
void run_scans(std::span<LaneScan> scans, std::span<float* const> y) {
  const auto count = static_cast<int64_t>(scans.size());
  for (LaneScan& scan : scans) scan.start();
#pragma omp parallel for schedule(dynamic)
  for (int64_t task = 0; task < count * scans[0].tasks(); ++task) {
    scans[size(task % count)].run(task / count, y[size(task % count)]);
  }
}

void run_scan_grads(std::span<LaneScan> scans, std::span<const LaneScanGradArgs> grads) {
  constexpr int64_t kRows = 256;  // of dB and dC that one task adds up
  const auto count = static_cast<int64_t>(scans.size());
  for (LaneScan& scan : scans) scan.start_grad();
#pragma omp parallel
  for (int64_t segment = scans[0].segments() - 1; segment >= 0; --segment) {
#pragma omp for schedule(dynamic)
    for (int64_t task = 0; task < count * scans[0].tasks(); ++task) {
      scans[size(task % count)].run_grad(grads[size(task % count)], task / count, segment);
    }
    const int64_t rows = scans[0].segment_rows(segment), chunks = (rows + kRows - 1) / kRows;
#pragma omp for
    for (int64_t task = 0; task < count * chunks; ++task) {
      const int64_t begin = task / count * kRows;
      scans[size(task % count)].sum_states(grads[size(task % count)], segment, begin, std::min(rows, begin + kRows));
    }
  }
}

void softplus_rows(const float* raw, const float* bias, float* delta, float* slope, int64_t rows, int64_t d_inner) {
  with_best_isa([&]() PM_ISA_BODY {
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t i = 0; i < d_inner; ++i) delta[row * d_inner + i] = raw[row * d_inner + i] + bias[i];
    }
    const int64_t n = rows * d_inner;
    if (slope != nullptr) {
#pragma omp simd
      for (int64_t i = 0; i < n; ++i) slope[i] = softplus_slope(delta[i]);
    }
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) delta[i] = softplus(delta[i]);
  });
}

}  // namespace pm::cpu
