// The recurrence of the selective scan in float, without softplus and gate, eight channels side by side:
//   s_i[n] = exp(delta_i * A[n]) * s_{i-1}[n] + delta_i * B_i[n] * u_i,   y_i = sum_n C_i[n] * s_i[n] + D_skip * u_i
// A group is eight neighbouring channels, a block some neighbouring groups, a task one block of one batch entry. A task walks
// the whole sequence with its states in registers. How channels are cut depends on the shape alone, so results do not depend
// on the number of threads.
//
// The gradient keeps the states at the start of every tile and walks the tiles from the last to the first. dB and dC are sums
// over all channels: a segment of tiles is done by all tasks before its rows of dB and dC are added up in block order.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "engine/cpu/core/floats.h"

namespace pm::cpu {

struct LaneScanArgs {
  const float* delta;    // (batch, seq_len, d_inner), positive
  const float* u;        // (batch, seq_len, d_inner)
  const float* A;        // (d_inner, d_state), negative
  const float* B;        // batch * seq_len rows of d_state values, state_stride apart
  const float* C;        // as B
  const float* D_skip;   // (d_inner)
  int64_t state_stride;  // from one row of B or C to the next
  int64_t batch, seq_len, d_inner, d_state;
  bool reverse;  // walks from the last token to the first
};

struct LaneScanGradArgs {
  const float* dy;     // (batch, seq_len, d_inner)
  const float* slope;  // (batch, seq_len, d_inner): what the gradient of delta is multiplied by
  float* du;           // (batch, seq_len, d_inner)
  float* ddelta;       // (batch, seq_len, d_inner), may be `slope`
  float* dB;           // rows as B, dstate_stride apart
  float* dC;
  int64_t dstate_stride;
};

class LaneScan {
 public:
  // keep_starts: the gradient follows. The arguments must stay valid. memory: where kept values come from (floats.h).
  LaneScan(const LaneScanArgs& args, bool keep_starts, Backend* memory = nullptr);
  // What a scan that keeps its starts takes there, from the first run to its end.
  int64_t kept_floats() const;

  int64_t tasks() const { return args_.batch * blocks_; }
  // Before run.
  void start();
  // y: (batch, seq_len, d_inner). Tasks may run at the same time.
  void run(int64_t task, float* y);

  // For segment = segments() - 1 down to 0: run_grad of all tasks, then sum_states of all rows.
  void start_grad();
  int64_t segments() const;
  void run_grad(const LaneScanGradArgs& grad, int64_t task, int64_t segment);
  int64_t segment_rows(int64_t segment) const;  // of all batch entries
  void sum_states(const LaneScanGradArgs& grad, int64_t segment, int64_t begin, int64_t end) const;
  // After the last segment. dA: (d_inner, d_state); dD_skip and ddelta_sum (the sum of ddelta): (d_inner)
  void finish_grad(float* dA, float* dD_skip, float* ddelta_sum) const;

 private:
  struct Group;
  template <int kStates>
  void run_group(const Group& group, float* y, float* starts) const;
  template <int kStates>
  void run_grad_group(const LaneScanGradArgs& grad, const Group& group, int64_t segment, float* partial, bool first);
  Group group_of(int64_t task, int64_t index) const;
  int64_t groups_of(int64_t task) const;
  int64_t row(int64_t entry, int64_t step) const;
  int64_t starts_floats() const;
  int64_t partial_floats() const;

  LaneScanArgs args_;
  bool keep_starts_;
  Backend* memory_;
  int64_t states_;  // d_state rounded up to 8, 16, 32 or 64
  int64_t groups_, block_groups_, blocks_, tiles_;
  Floats starts_;               // (batch, groups, tiles, states, lanes)
  Floats partial_;              // (batch, blocks, segment, 2 * states): dB and dC of a segment, summed over the block
  std::vector<float> adjoint_;  // (batch, groups, states, lanes): decay times adjoint of the step after the segment
  std::vector<double> sums_;    // (batch, groups, states + 2, lanes): dA, dD_skip, ddelta_sum so far
};

// Both use all threads. The scans have one shape.
// y[i]: of scans[i], (batch, seq_len, d_inner)
void run_scans(std::span<LaneScan> scans, std::span<float* const> y);
// After run_scans of scans that keep their starts.
void run_scan_grads(std::span<LaneScan> scans, std::span<const LaneScanGradArgs> grads);
// delta = softplus(raw + bias); slope, unless null, its derivative. One thread. raw, delta, slope: (rows, d_inner), may be one
// array; bias: (d_inner)
void softplus_rows(const float* raw, const float* bias, float* delta, float* slope, int64_t rows, int64_t d_inner);

}  // namespace pm::cpu
