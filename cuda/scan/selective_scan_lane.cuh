// Forward passes of the gated selective scan for d_state 9 to 16: one lane per channel, its 16 states in registers.
//
// maths   : as selective_scan.cu, with the same chunks, summaries and carry between the two passes
// layout  : a warp holds kSubs chunks of up to 32 / kSubs channels each. Lane = sub * width + local: channel `local` of the
//           group, chunk `sub` of the warp's set. kSubs is 2 up to 16 channels, else 1, so that 24 or more of 32 lanes work at
//           every width of the published models but the first (6 channels), which the kernels of selective_scan.cu take.
//
//             d_inner 12, kSubs 2        lanes 0-11   12-23   24-31
//                                        chunk 0     chunk 1  idle
//
//           Four tokens at a time: u, delta, z go straight to registers (neighbouring lanes are neighbouring channels), B and
//           C of the four tokens through the warp's shared memory, where the lanes of a chunk read them as broadcasts. The
//           next four tokens are loaded while these are computed.
// why     : softplus, gate and addresses are paid once per 16 states instead of once per 4, and y needs no sum over lanes:
//           about 8 instructions per 32 state updates in the second pass, 5 of them the recurrence.
// traffic : summary reads u, delta, B; finish reads u, delta, z, B, C and writes out. Two exponentials per state and token.
// shared  : 2 * kSubs * 68 floats per warp; rows of 68 keep the chunks of a warp in different banks
// numerics: float32 state and sums for any storage; ex2.approx with A * log2(e). deterministic: no atomics
#pragma once
#include "cuda/scan/selective_scan.cuh"

namespace pm::cuda::scan {

constexpr int kLaneStates = 16;
constexpr int kLaneSteps = 4;                          // tokens at a time
constexpr int kTileFloats = kLaneSteps * kLaneStates;  // B (or C) of one chunk
constexpr int kTileStride = kTileFloats + 4;

// Position of a lane and of its warp.
template <int kSubs>
struct LaneWalk {
  static constexpr int kRowsPerLoad = kWarp / kLaneStates;  // tokens of B that a warp loads at once
  static constexpr int kLoads = kLaneSteps / kRowsPerLoad;  // for four tokens of one chunk
  static constexpr int kPairs = kSubs * kLoads;             // values of B (and of C) that a lane loads at a time
  int sub;
  int64_t channel, chunk_channel;  // channel; (batch * chunks + chunk) * d_inner + channel
  bool live;                       // channel and chunk exist
  int64_t left, tiles;             // tokens of the lane's chunk from here on; groups of four tokens that the warp walks
  int64_t item, item_step;         // element of the lane's next token in u; distance between tokens
  int64_t pair, pair_step;         // element of the lane's first value in B; distance between rows
  int64_t pair_left;               // tokens from that row to the end of the sequence

  __device__ LaneWalk(const Problem& p, int width, unsigned work, int lane) {
    const unsigned sets = static_cast<unsigned>((p.chunks + kSubs - 1) / kSubs),
                   groups = static_cast<unsigned>(p.groups);
    const unsigned batch_set = work / groups;
    const int64_t batch = batch_set / sets, first_chunk = int64_t{batch_set % sets} * kSubs;
    sub = lane / width;
    channel = int64_t{work % groups} * width + lane % width;
    const int64_t chunk = first_chunk + sub, begin = chunk * p.chunk_len, first_begin = first_chunk * p.chunk_len;
    live = sub < kSubs && chunk < p.chunks && channel < p.d_inner;
    chunk_channel = (batch * p.chunks + chunk) * p.d_inner + channel;
    left = live ? min(p.chunk_len, p.seq_len - begin) : 0;
    tiles = (min(p.chunk_len, p.seq_len - first_begin) + kLaneSteps - 1) / kLaneSteps;
    const int64_t direction = p.reverse ? -1 : 1, first_row = batch * p.seq_len + (p.reverse ? p.seq_len - 1 : 0);
    item_step = direction * p.d_inner;
    item = (first_row + direction * begin) * p.d_inner + channel;
    const int64_t token = first_begin + lane / kLaneStates;
    pair_step = direction * p.d_state;
    pair = (first_row + direction * token) * p.d_state + lane % kLaneStates;
    pair_left = lane % kLaneStates < p.d_state ? p.seq_len - token : 0;
  }
  __device__ void advance() {
    left -= kLaneSteps;
    item += item_step * kLaneSteps;
    pair += pair_step * kLaneSteps;
    pair_left -= kLaneSteps;
  }
  template <typename T>
  __device__ void load_items(const T* __restrict__ source, float (&v)[kLaneSteps]) const {
#pragma unroll
    for (int i = 0; i < kLaneSteps; ++i) v[i] = i < left ? to_float(source[item + item_step * i]) : 0.0f;
  }
  // Value lane + 32 * j of (kSubs, kLaneSteps, kLaneStates). Tokens behind a chunk belong to the next one: harmless, their
  // delta is zero here.
  template <typename T>
  __device__ void load_pairs(const Problem& p, const T* __restrict__ source, float (&v)[kPairs]) const {
#pragma unroll
    for (int j = 0; j < kPairs; ++j) {
      const int64_t token = p.chunk_len * (j / kLoads) + j % kLoads * kRowsPerLoad;
      v[j] = token < pair_left ? to_float(source[pair + pair_step * token]) : 0.0f;
    }
  }
};

template <int kSubs>
struct LaneTile {
  alignas(16) float B[kSubs * kTileStride];
  alignas(16) float C[kSubs * kTileStride];

  __device__ static void put(float* pairs, int lane, const float (&v)[LaneWalk<kSubs>::kPairs]) {
#pragma unroll
    for (int j = 0; j < LaneWalk<kSubs>::kPairs; ++j) {
      const int at = lane + kWarp * j;
      pairs[at / kTileFloats * kTileStride + at % kTileFloats] = v[j];
    }
  }
  __device__ static float4 four(const float* pairs, int sub, int step, int quad) {
    return *reinterpret_cast<const float4*>(pairs + sub * kTileStride + step * kLaneStates + quad * 4);
  }
};

// kFinish false: summary of each chunk from a zero state. kFinish true: each chunk from what enters it (zero where
// chunks.states is null), with the output.
template <typename T, int kSubs, bool kFinish>
__global__ void __launch_bounds__(kWarps* kWarp)
    selective_scan_lane_kernel(Problem p, int width, unsigned works, Inputs<T> in, Chunks chunks, T* __restrict__ out) {
  __shared__ LaneTile<kSubs> tiles[kWarps];
  const unsigned work = blockIdx.x * kWarps + threadIdx.x / kWarp;
  if (work >= works) return;  // whole warps leave: nothing below waits for the block
  const int lane = threadIdx.x % kWarp;
  LaneTile<kSubs>& tile = tiles[threadIdx.x / kWarp];
  LaneWalk<kSubs> walk(p, width, work, lane);
  const int sub = min(walk.sub, kSubs - 1);  // idle lanes read along
  float a2[kLaneStates], state[kLaneStates], delta_sum = 0.0f;
#pragma unroll
  for (int n = 0; n < kLaneStates; ++n) {
    const bool exists = walk.live && n < p.d_state;
    a2[n] = exists ? in.A[walk.channel * p.d_state + n] * kLog2e : 0.0f;
    state[n] = kFinish && exists && chunks.states != nullptr ? chunks.states[walk.chunk_channel * p.d_state + n] : 0.0f;
  }
  const float bias = walk.live ? in.delta_bias[walk.channel] : 0.0f;
  const float D = kFinish && walk.live ? in.D_skip[walk.channel] : 0.0f;

  float u[kLaneSteps], raw[kLaneSteps], z[kLaneSteps], B[LaneWalk<kSubs>::kPairs], C[LaneWalk<kSubs>::kPairs];
  const auto load = [&] {  // of the four tokens the walk stands on; zeros behind the end
    walk.load_items(in.u, u);
    walk.load_items(in.delta, raw);
    walk.load_pairs(p, in.B, B);
    if constexpr (kFinish) {
      walk.load_items(in.z, z);
      walk.load_pairs(p, in.C, C);
    }
  };
  load();
  for (int64_t i = 0; i < walk.tiles; ++i) {
    float delta[kLaneSteps], delta_u[kLaneSteps], skip[kLaneSteps], gate[kLaneSteps];
#pragma unroll
    for (int step = 0; step < kLaneSteps; ++step) {
      delta[step] = step < walk.left ? softplus(raw[step] + bias) : 0.0f;
      delta_u[step] = delta[step] * u[step];
      if constexpr (kFinish) {
        skip[step] = D * u[step];
        gate[step] = z[step] * sigmoid(z[step]);
      } else {
        delta_sum += delta[step];
      }
    }
    __syncwarp();  // the lanes have read the tile before
    tile.put(tile.B, lane, B);
    if constexpr (kFinish) tile.put(tile.C, lane, C);
    __syncwarp();
    const int64_t left = walk.left, item = walk.item;
    walk.advance();
    load();
#pragma unroll
    for (int step = 0; step < kLaneSteps; ++step) {
      float y[4] = {};  // four sums in turn: shorter chains
#pragma unroll
      for (int quad = 0; quad < kLaneStates / 4; ++quad) {
        const float4 b = tile.four(tile.B, sub, step, quad), c = kFinish ? tile.four(tile.C, sub, step, quad) : b;
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          float& s = state[4 * quad + k];
          s = fmaf(exp2_approx(delta[step] * a2[4 * quad + k]), s, delta_u[step] * component(b, k));
          if constexpr (kFinish) y[k] = fmaf(component(c, k), s, y[k]);
        }
      }
      if (kFinish && step < left) {
        const float value = ((y[0] + y[1]) + (y[2] + y[3]) + skip[step]) * gate[step];
        out[item + walk.item_step * step] = from_float<T>(value);
      }
    }
  }
  if constexpr (!kFinish) {
    if (!walk.live) return;
#pragma unroll
    for (int n = 0; n < kLaneStates; ++n) {
      if (n < p.d_state) chunks.states[walk.chunk_channel * p.d_state + n] = state[n];
    }
    chunks.delta_sums[walk.chunk_channel] = delta_sum;
  }
}

}  // namespace pm::cuda::scan
