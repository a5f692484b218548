// What the forward and the backward kernels of the selective scan share: the layout of a warp, staging of a tile, the
// chunk summaries and the carry over chunks. Maths in engine/ops/scan/selective_scan.h.
//
// Layout. kLanes lanes (1, 2, 4, 8, 16) own one channel, kStatesPerLane states each, so a warp owns 32 / kLanes
// channels of one batch over one chunk of the sequence. Lane = sub * kChannels + local: neighbouring lanes are
// neighbouring channels, so rows of u, delta, z are read in whole sectors and B and C come from shared memory as
// broadcasts. A warp walks its chunk in tiles of kSteps tokens. Each lane loads, for its own channel, the steps sub,
// sub + kLanes, ... of the tile, computes softplus and gates there once, and leaves (delta, delta * u) in the warp's
// shared memory.
// Masks: a channel, step or state outside the problem reads as zero. delta = 0 decays by exactly 1 and adds nothing, so
//        masked steps leave every state as it is; masked states start at 0 and stay 0.
#pragma once
#include <type_traits>

#include "cuda/core/launch.cuh"
#include "cuda/core/reduce.cuh"
#include "engine/ops/scan/selective_scan.h"

namespace pm::cuda::scan {

constexpr int kSteps = 8;          // tokens of a tile
constexpr int kStatesPerLane = 4;  // one 16-byte access of B and C
constexpr int kWarps = 4;          // of a block whose warps work on their own
constexpr float kLog2e = 1.4426950408889634f;
constexpr float kLn2 = 0.6931471805599453f;

// Sizes, passed to kernels by value. Work item = (batch, chunk, group of channels), group fastest.
struct Problem {
  int64_t batch, seq_len, d_inner;
  int64_t chunk_len, chunks, groups;
  int d_state;
  bool reverse;
  __host__ __device__ int64_t works() const { return batch * chunks * groups; }
};

template <typename T>
struct Inputs {
  const T *u, *delta, *z, *B, *C;  // (batch, seq_len, d_inner) three times, (batch, seq_len, d_state) twice
  const float *A, *D_skip, *delta_bias;
};

template <typename T>
Inputs<T> typed_inputs(const SelectiveScanArgs& a) {
  return {static_cast<const T*>(a.u),          static_cast<const T*>(a.delta),
          static_cast<const T*>(a.z),          static_cast<const T*>(a.B),
          static_cast<const T*>(a.C),          static_cast<const float*>(a.A),
          static_cast<const float*>(a.D_skip), static_cast<const float*>(a.delta_bias)};
}

// Chunk summaries in global memory; after carry() what enters each chunk. Null when one chunk holds the sequence.
struct Chunks {
  float* states;      // (batch, chunks, d_inner, d_state): state after the chunk when it starts from zero
  float* adjoints;    // same shape: what the chunk hands to the chunk before it, from zero; null in a forward call
  float* delta_sums;  // (batch, chunks, d_inner): the chunk decays a state by exp(A * delta_sum)
};

template <int kLanes>
struct Layout {
  static constexpr int kChannels = kWarp / kLanes;
  static constexpr int kStates = kLanes * kStatesPerLane;               // d_state rounded up
  static constexpr int kItems = kLanes < kSteps ? kSteps / kLanes : 1;  // tokens of a tile that a lane loads
  static constexpr int kPairs = kSteps * kStates / kWarp;  // values of B (and of C) of a tile that a lane loads
};

// ---------------------------------------------------------------- scalar maths
__device__ __forceinline__ float exp2_approx(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

// log(1 + exp(x)), x itself above 20. log1p(e) = 2 atanh(e / (2 + e)) keeps its relative accuracy for small e.
__device__ __forceinline__ float softplus(float x) {
  const float e = expf(-fabsf(x));
  const float t = __fdividef(e, 2.0f + e), w = t * t;
  float p = 0.14078889f;
  p = fmaf(p, w, 0.13982579f);
  p = fmaf(p, w, 0.20012298f);
  p = fmaf(p, w, 0.33333161f);
  p = fmaf(p, w, 1.0f);
  return x > 20.0f ? x : fmaf(2.0f * t, p, fmaxf(x, 0.0f));
}
// The same for what is stored with 8 significant bits: relative error below 7e-5. log(1 + e) / e is a polynomial on [0, 1].
__device__ __forceinline__ float softplus_coarsely(float x) {
  const float e = exp2_approx(-kLog2e * fabsf(x));
  float p = 0.0413473017f;
  p = fmaf(p, e, -0.157427206f);
  p = fmaf(p, e, 0.306300929f);
  p = fmaf(p, e, -0.496977805f);
  p = fmaf(p, e, 0.999943278f);
  return fmaf(e, p, fmaxf(x, 0.0f));
}
// softplus of a value that is stored as T.
template <typename T>
__device__ __forceinline__ float softplus_as(float x) {
  if constexpr (std::is_same_v<T, float>) return softplus(x);
  return softplus_coarsely(x);
}
// Two approximations of 1 ulp: relative error below 1e-6. __expf and __fdividef would guard against denormals.
__device__ __forceinline__ float sigmoid(float x) {
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(1.0f + exp2_approx(-kLog2e * x)));
  return result;
}

// Sums over the kWidth lanes whose ids differ in multiples of kStride below kWidth * kStride, for eight values at once:
// each round halves what a lane still holds, so 8 values over 8 lanes cost 7 shuffles and not 24. Lane `index` of the
// group ends with the sum of value j * kSpread + index % kSpread in v[j * kSpread], kSpread = min(kWidth, 8).
template <int kWidth, int kStride>
__device__ __forceinline__ void scatter_sum(float (&v)[8], int index) {
  constexpr int kSpread = kWidth < 8 ? kWidth : 8;
#pragma unroll
  for (int m = kSpread / 2; m > 0; m /= 2) {
    const bool upper = (index & m) != 0;
#pragma unroll
    for (int s = 0; s < 8; ++s) {
      if ((s & (kSpread - m)) != 0)
        continue;  // bits m and above are settled: v[s] holds what the lane's own bits select
      const float keep = upper ? v[s + m] : v[s], send = upper ? v[s] : v[s + m];
      v[s] = keep + __shfl_xor_sync(0xffffffffu, send, m * kStride);
    }
  }
#pragma unroll
  for (int m = 8; m < kWidth; m *= 2) v[0] += __shfl_xor_sync(0xffffffffu, v[0], m * kStride);
}

// ---------------------------------------------------------------- position of a lane
template <int kLanes>
struct Walk {
  using L = Layout<kLanes>;
  int lane, sub, local;
  int64_t batch_chunk;  // batch * chunks + chunk
  int64_t channel;
  bool live;                // channel < d_inner
  int64_t left;             // tokens of the chunk from the current tile on
  int steps;                // of them in the current tile; zero or less behind the end
  int64_t row_step;         // +1, or -1 in reverse
  int64_t item, item_step;  // element of the lane's first token in u; distance between its tokens
  int64_t pair, pair_step;  // element of the lane's first value in B; distance between rows

  // Starts at the first token of the chunk. 32-bit divisions: there are fewer than 2^32 warps.
  __device__ Walk(const Problem& p, unsigned batch_and_chunk, int64_t group, int lane_id)
      : lane(lane_id),
        sub(lane_id / L::kChannels),
        local(lane_id % L::kChannels),
        batch_chunk(batch_and_chunk),
        channel(group * L::kChannels + local),
        live(channel < p.d_inner) {
    const unsigned chunks = static_cast<unsigned>(p.chunks);
    const int64_t batch = batch_and_chunk / chunks, begin = batch_and_chunk % chunks * p.chunk_len;
    set_left(min(p.chunk_len, p.seq_len - begin));
    row_step = p.reverse ? -1 : 1;
    const int64_t row = first_row(p, batch, begin);
    item = (row + row_step * sub) * p.d_inner + channel;
    item_step = row_step * kLanes * p.d_inner;
    pair = (row + row_step * (lane / L::kStates)) * p.d_state + lane % L::kStates;
    pair_step = row_step * p.d_state;
  }
  static __device__ int64_t first_row(const Problem& p, int64_t batch, int64_t step) {
    return batch * p.seq_len + (p.reverse ? p.seq_len - 1 - step : step);
  }
  __device__ void set_left(int64_t tokens) {
    left = tokens;
    steps = static_cast<int>(min(tokens, int64_t{kSteps}));
  }
  // By whole tiles, backwards if negative.
  __device__ void advance(const Problem& p, int tiles) {
    set_left(left - int64_t{kSteps} * tiles);
    item += row_step * kSteps * tiles * p.d_inner;
    pair += pair_step * kSteps * tiles;
  }
  // Whether the lane's item j of the current tile exists.
  __device__ bool has(int j) const {
    const int step = sub + j * kLanes;
    return live && step < steps;
  }
  __device__ int64_t element(int j) const { return item + j * item_step; }

  template <typename T>
  __device__ void load_items(const T* __restrict__ source, float (&v)[L::kItems]) const {
#pragma unroll
    for (int j = 0; j < L::kItems; ++j) v[j] = has(j) ? to_float(source[element(j)]) : 0.0f;
  }
  // Value lane + 32 * j of the padded (kSteps, kStates) tile.
  template <typename T>
  __device__ void load_pairs(const Problem& p, const T* __restrict__ source, float (&v)[L::kPairs]) const {
#pragma unroll
    for (int j = 0; j < L::kPairs; ++j) {
      const int step = (lane + kWarp * j) / L::kStates, state = (lane + kWarp * j) % L::kStates;
      const int rows = step - lane / L::kStates, columns = state - lane % L::kStates;  // constants of j
      v[j] = step < steps && state < p.d_state ? to_float(source[pair + rows * pair_step + columns]) : 0.0f;
    }
  }
  // The lane's four states of its channel in a (d_inner, d_state) matrix, zero outside.
  __device__ void load_states(const Problem& p, const float* __restrict__ matrix, float (&v)[kStatesPerLane]) const {
#pragma unroll
    for (int k = 0; k < kStatesPerLane; ++k) {
      const int state = sub * kStatesPerLane + k;
      v[k] = live && state < p.d_state ? matrix[channel * p.d_state + state] : 0.0f;
    }
  }
  __device__ void store_states(const Problem& p, float* __restrict__ matrix, const float (&v)[kStatesPerLane]) const {
#pragma unroll
    for (int k = 0; k < kStatesPerLane; ++k) {
      const int state = sub * kStatesPerLane + k;
      if (live && state < p.d_state) matrix[channel * p.d_state + state] = v[k];
    }
  }
};

// ---------------------------------------------------------------- shared memory of a warp
template <int kLanes>
struct WarpTile {
  using L = Layout<kLanes>;
  alignas(16) float B[kSteps * L::kStates];
  alignas(16) float C[kSteps * L::kStates];
  float2 delta[kSteps * L::kChannels];  // delta, delta * u
  float g[kSteps * L::kChannels];       // dout * silu(z), in gradients

  __device__ static void put(float* pairs, int lane, const float (&v)[L::kPairs]) {
#pragma unroll
    for (int j = 0; j < L::kPairs; ++j) pairs[lane + kWarp * j] = v[j];
  }
  __device__ static float4 four(const float* pairs, int step, int sub) {
    return *reinterpret_cast<const float4*>(pairs + step * L::kStates + sub * kStatesPerLane);
  }
  // Place of the lane's item j. Lanes beyond the eighth of a channel (kLanes = 16) have none: ask step_exists first.
  __device__ static int place(const Walk<kLanes>& walk, int j) {
    return (walk.sub + j * kLanes) * L::kChannels + walk.local;
  }
  __device__ static bool step_exists(const Walk<kLanes>& walk) { return kLanes <= kSteps || walk.sub < kSteps; }
};

__device__ __forceinline__ float component(const float4& v, int k) {
  return k == 0 ? v.x : k == 1 ? v.y : k == 2 ? v.z : v.w;
}

// ---------------------------------------------------------------- chunk summaries
// Every chunk on its own, from zero. One exp serves both directions: the adjoint that leaves the front of the chunk is
// sum over its steps i of (decays up to and with i) * C_i * g_i, which a walk in forward order sums with a running
// product.
template <typename T, int kLanes, bool kAdjoint>
__global__ void __launch_bounds__(kWarps* kWarp)
    selective_scan_summary_kernel(Problem p, Inputs<T> in, const T* __restrict__ dout, Chunks out) {
  using L = Layout<kLanes>;
  __shared__ WarpTile<kLanes> tiles[kWarps];
  const unsigned work = blockIdx.x * kWarps + threadIdx.x / kWarp, groups = static_cast<unsigned>(p.groups);
  if (work >= p.works()) return;  // whole warps leave: nothing below waits for the block
  Walk<kLanes> walk(p, work / groups, work % groups, threadIdx.x % kWarp);
  WarpTile<kLanes>& tile = tiles[threadIdx.x / kWarp];
  float a2[kStatesPerLane], state[kStatesPerLane] = {}, adjoint[kStatesPerLane] = {};
  float product[kStatesPerLane] = {1.0f, 1.0f, 1.0f, 1.0f}, delta_sum = 0.0f;
  walk.load_states(p, in.A, a2);
#pragma unroll
  for (int k = 0; k < kStatesPerLane; ++k) a2[k] *= kLog2e;
  const float bias = walk.live ? in.delta_bias[walk.channel] : 0.0f;

  float u[L::kItems], raw[L::kItems], z[L::kItems], upstream[L::kItems], B[L::kPairs], C[L::kPairs];
  const auto load = [&] {  // of the tile the walk stands on; all zeros behind the end
    walk.load_items(in.u, u);
    walk.load_items(in.delta, raw);
    walk.load_pairs(p, in.B, B);
    if constexpr (kAdjoint) {
      walk.load_items(in.z, z);
      walk.load_items(dout, upstream);
      walk.load_pairs(p, in.C, C);
    }
  };
  load();
  while (walk.left > 0) {
    __syncwarp();  // the lanes have read the tile before
#pragma unroll
    for (int j = 0; j < L::kItems; ++j) {
      if (!tile.step_exists(walk)) continue;
      const float delta = walk.has(j) ? softplus(raw[j] + bias) : 0.0f;
      tile.delta[tile.place(walk, j)] = make_float2(delta, delta * u[j]);
      if constexpr (kAdjoint) tile.g[tile.place(walk, j)] = upstream[j] * z[j] * sigmoid(z[j]);
    }
    tile.put(tile.B, walk.lane, B);
    if constexpr (kAdjoint) tile.put(tile.C, walk.lane, C);
    __syncwarp();
    walk.advance(p, 1);
    load();
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      const float2 d = tile.delta[step * L::kChannels + walk.local];
      const float4 b = tile.four(tile.B, step, walk.sub);
      const float g = kAdjoint ? tile.g[step * L::kChannels + walk.local] : 0.0f;
      const float4 c = kAdjoint ? tile.four(tile.C, step, walk.sub) : b;
      delta_sum += d.x;
#pragma unroll
      for (int k = 0; k < kStatesPerLane; ++k) {
        const float decay = exp2_approx(d.x * a2[k]);
        state[k] = fmaf(decay, state[k], d.y * component(b, k));
        if constexpr (kAdjoint) {
          product[k] *= decay;
          adjoint[k] = fmaf(product[k], component(c, k) * g, adjoint[k]);
        }
      }
    }
  }
  const int64_t channels = walk.batch_chunk * p.d_inner;
  walk.store_states(p, out.states + channels * p.d_state, state);
  if constexpr (kAdjoint) walk.store_states(p, out.adjoints + channels * p.d_state, adjoint);
  if (walk.live && walk.sub == 0) out.delta_sums[channels + walk.channel] = delta_sum;
}

// ---------------------------------------------------------------- host side
// Turns summaries into what enters each chunk, in place: states forward and, unless null, adjoints backward.
void carry(const Problem& p, const float* A, const Chunks& chunks, Stream stream);

inline unsigned blocks_for(int64_t works, int64_t per_block) {
  return static_cast<unsigned>(ceil_div(works, per_block));
}

// Calls fn with the smallest number of lanes that holds d_state.
template <typename Fn>
void dispatch_lanes(int64_t d_state, Fn&& fn) {
  if (d_state <= 1 * kStatesPerLane) return fn.template operator()<1>();
  if (d_state <= 2 * kStatesPerLane) return fn.template operator()<2>();
  if (d_state <= 4 * kStatesPerLane) return fn.template operator()<4>();
  if (d_state <= 8 * kStatesPerLane) return fn.template operator()<8>();
  return fn.template operator()<16>();
}

inline Problem make_problem(const SelectiveScanArgs& a, int64_t groups, int64_t chunk_len) {
  return {
      a.batch,  a.seq_len, a.d_inner, chunk_len, ceil_div(a.seq_len, chunk_len), groups, static_cast<int>(a.d_state),
      a.reverse};
}

inline void copy_floats(void* destination, const float* source, int64_t count, Stream stream) {
  PM_CUDA_CHECK(cudaMemcpyAsync(destination, source, static_cast<size_t>(count) * sizeof(float),
                                cudaMemcpyDeviceToDevice, raw(stream)));
}

}  // namespace pm::cuda::scan
