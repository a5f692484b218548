// The two passes of the gradient scan over a chunk, its shared memory and what it writes; see block_grad.cu.
//
// Every warp works on its own 24 channels: it loads their values, B and C of its chunks, and writes their results, in step
// with nobody else. Only dB and dC, where several warps share a chunk, are added across warps, one barrier per tile.
#pragma once
#include "cuda/scan/block_grad.cuh"

namespace pm::cuda::block {

constexpr int kWarps = kGradThreads / kWarp;
constexpr int kWarpChannels = kDirectionThreads / kWarps;  // 24
constexpr int kElements = kTile * kWarpChannels / kWarp;   // values a lane loads per tile: 3
constexpr int kPairColumns = 2 * kStates;

template <typename T>
struct GradInputs {
  const T *u, *delta, *proj, *z, *dy;
  const float *A_log, *D_skip, *states, *adjoints;
  float share;
  bool reverse;
};
template <typename T>
struct GradOutputs {
  T *y, *dz, *du, *ddelta;
  float *pairs, *parameters;
};

// Shared memory of a block.
template <int kSubLanes>
struct GradMemory {
  static constexpr int kSubsPerWarp = 8 / kSubLanes;
  static constexpr int kSubStride = kTile * kPairColumns + 4;
  static constexpr bool kShared = kSubLanes == 8;  // a whole warp on one chunk: dB, dC through shared memory
  float4 states[(kGradTiles - 1) * kLaneChannels][kGradThreads];  // before tiles 1 to 15
  float4 values[kWarps][kTile * kWarpChannels];                   // delta, u or delta * u, g; then results
  float pairs[kWarps][kSubsPerWarp * kSubStride];                 // B, C of the tile
  float lanes[kShared ? kWarps : 1][2][8][kPairColumns];          // dB, dC of two steps and 8 channel lanes
  float warps[kShared ? 2 : 1][kWarps][kTile][kPairColumns];      // dB, dC of the warps, two tiles
  SubTable table;
};

// A value of the tile that a lane loads and writes for its warp.
struct Element {
  int at;           // of the first tile, from the block's first element
  int first, last;  // tiles' first steps [first, last) for which it exists
  int slot, channel;

  template <typename Memory>
  __device__ Element(const Sequences& s, const Memory& memory, int group, int index, bool reverse) {
    const int t = index / kWarpChannels;
    const Walk walk(s, memory.table, group, threadIdx.x / kWarp * kWarpChannels + index % kWarpChannels, reverse);
    at = walk.at + t * walk.step;
    first = walk.first - t;
    last = walk.last - t;
    slot = index;
    channel = walk.channel;
  }
  __device__ bool has(int i) const { return i >= first && i < last; }
};

// The next tile's B and C of a warp on their way from global to shared memory.
template <typename T, int kSubLanes>
struct PairLoader {
  using Raw = std::conditional_t<std::is_same_v<T, float>, float4, uint2>;
  using Memory = GradMemory<kSubLanes>;
  Raw waiting[Memory::kSubsPerWarp];

  __device__ void begin(const Sequences& s, const Memory& memory, const T* proj, int first_sub, int tile,
                        bool reverse) {
    const int i = tile * kTile + threadIdx.x % kWarp / 8, step = reverse ? s.chunk_len - 1 - i : i;
#pragma unroll
    for (int k = 0; k < Memory::kSubsPerWarp; ++k) {
      const int sub = min(first_sub + k, s.subs - 1), token = min(step, max(memory.table.len[sub] - 1, 0));
      waiting[k] =
          *reinterpret_cast<const Raw*>(proj + (memory.table.row[sub] + token) * s.proj_width + threadIdx.x % 8 * 4);
    }
  }
  __device__ void finish(Memory& memory) const {
#pragma unroll
    for (int k = 0; k < Memory::kSubsPerWarp; ++k) {
      float* target = memory.pairs[threadIdx.x / kWarp] + k * Memory::kSubStride + threadIdx.x % kWarp * 4;
      if constexpr (std::is_same_v<T, float>) {
        *reinterpret_cast<float4*>(target) = waiting[k];
      } else {
        const uint2 v = waiting[k];
        *reinterpret_cast<float4*>(target) =
            make_float4(__uint_as_float(v.x << 16), __uint_as_float(v.x & 0xffff0000u), __uint_as_float(v.y << 16),
                        __uint_as_float(v.y & 0xffff0000u));
      }
    }
  }
};

// What the passes share: the lane's position and its elements.
template <typename T, int kSubLanes>
struct GradWalk {
  using Memory = GradMemory<kSubLanes>;
  const Sequences& s;
  const GradInputs<T>& in;
  const GradOutputs<T>& out;
  Memory& memory;
  int64_t base;       // the block's first element
  int64_t pair_base;  // row of dB, dC of the first row
  int warp, warp_lane, tile_step;
  Element elements[kElements];
  GradLane lane;

  // B and C of a step for the lane's states.
  __device__ __forceinline__ void load_pairs(int t, Four& B, Four& C) const {
    const int sub = kSubLanes == 8 ? 0 : warp_lane / 4 / kSubLanes;
    const float4* row =
        reinterpret_cast<const float4*>(memory.pairs[warp] + sub * Memory::kSubStride + t * kPairColumns) +
        lane.state_lane;
    unpack(row[0], B);
    unpack(row[4], C);
  }
  __device__ __forceinline__ float4& value(int t, int c) const {
    return memory.values[warp][t * kWarpChannels + warp_lane / 4 * kLaneChannels + c];
  }
  __device__ int first_sub() const { return min(warp * kWarpChannels / s.width, s.subs - 1); }

  __device__ void forward_tile(float (&y)[kTile][kLaneChannels]) {
#pragma unroll
    for (int t = 0; t < kTile; ++t) {
      Four B, C;
      load_pairs(t, B, C);
      float2 d[kLaneChannels];
#pragma unroll
      for (int c = 0; c < kLaneChannels; ++c) d[c] = *reinterpret_cast<const float2*>(&value(t, c));
      lane.template forward<true>(d, B, C, y[t]);
    }
    sum_states(y, lane.state_lane);
  }

  // What the second direction needs to write y and dz of a tile.
  struct Gate {
    T z[kElements], dy[kElements], y[kElements];
  };
  __device__ __forceinline__ void load_gate(int tile, Gate& gate) const {
#pragma unroll
    for (int j = 0; j < kElements; ++j) {
      const bool has = elements[j].has(tile * kTile);
      const int at = elements[j].at + tile * tile_step;
      gate.z[j] = load_if(has, in.z + base + at);
      gate.dy[j] = load_if(has, in.dy + base + at);
      gate.y[j] = load_if(has, out.y + base + at);
    }
  }
  // y of the direction, and in the second one with the other's and gated: out.y, out.dz.
  template <bool kSecond>
  __device__ __forceinline__ void write_y(int tile, const float (&skip)[kElements], const Gate& loaded) {
#pragma unroll
    for (int j = 0; j < kElements; ++j) {
      if (!elements[j].has(tile * kTile)) continue;
      const int at = elements[j].at + tile * tile_step;
      float value = memory.values[warp][elements[j].slot].z + skip[j];
      if constexpr (kSecond) {
        value = (value + to_float(loaded.y[j])) * in.share;
        const float z = to_float(loaded.z[j]), gate = sigmoid(z);
        out.dz[base + at] = from_float<T>(to_float(loaded.dy[j]) * value * gate * (1.0f + z * (1.0f - gate)));
        value *= z * gate;
      }
      out.y[base + at] = from_float<T>(value);
    }
  }

  // Pass A.
  template <bool kSecond>
  __device__ void forward_pass() {
    PairLoader<T, kSubLanes> loader;
    const int tiles = s.chunk_len / kTile;
    T u[kElements], delta[kElements];
    float D[kElements];
    const auto load = [&](int tile) {
      loader.begin(s, memory, in.proj, first_sub(), tile, in.reverse);
#pragma unroll
      for (int j = 0; j < kElements; ++j) {
        const bool has = elements[j].has(tile * kTile);
        const int at = elements[j].at + tile * tile_step;
        u[j] = load_if(has, in.u + base + at);
        delta[j] = load_if(has, in.delta + base + at);
      }
    };
#pragma unroll
    for (int j = 0; j < kElements; ++j) D[j] = in.D_skip[elements[j].channel];
    load(0);
#pragma unroll 1
    for (int tile = 0; tile < tiles; ++tile) {
      float skip[kElements];
#pragma unroll
      for (int j = 0; j < kElements; ++j) {
        const float u_now = to_float(u[j]), delta_now = to_float(delta[j]);
        memory.values[warp][elements[j].slot] = make_float4(delta_now, delta_now * u_now, 0.0f, 0.0f);
        skip[j] = D[j] * u_now;
      }
      loader.finish(memory);
      __syncwarp();
      if (tile + 1 < tiles) load(tile + 1);
      Gate gate;
      if constexpr (kSecond) load_gate(tile, gate);
      if (tile > 0) {
#pragma unroll
        for (int c = 0; c < kLaneChannels; ++c) {
          const Four& v = lane.state[c];
          memory.states[(tile - 1) * kLaneChannels + c][threadIdx.x] = make_float4(v[0], v[1], v[2], v[3]);
        }
      }
      float y[kTile][kLaneChannels] = {};
      forward_tile(y);
#pragma unroll
      for (int c = 0; c < kLaneChannels; ++c) value(lane.state_lane, c).z = y[0][c];
      __syncwarp();
      write_y<kSecond>(tile, skip, gate);
    }
  }

  // dB and dC of a step over the channels of the warp. Several lanes to a chunk, but not all: lane by lane to global memory.
  __device__ __forceinline__ void write_step(int tile, int t, float (&pairs)[2 * kLaneStates]) {
    if constexpr (kSubLanes == 8) {
      // The halves change places in every other row, so that 8 lanes write 32 different banks.
      const int channel_lane = warp_lane / 4, flip = (channel_lane & 1) * kStates;
      float* row = memory.lanes[warp][t & 1][channel_lane] + lane.state_lane * kLaneStates;
      *reinterpret_cast<float4*>(row + flip) = make_float4(pairs[0], pairs[1], pairs[2], pairs[3]);
      *reinterpret_cast<float4*>(row + (kStates - flip)) = make_float4(pairs[4], pairs[5], pairs[6], pairs[7]);
    } else {
      sum_channels<kSubLanes>(pairs, warp_lane);
      const int i = tile * kTile + t, token = in.reverse ? s.chunk_len - 1 - i : i;
      if (token >= memory.table.len[lane.sub]) return;
      float* target = out.pairs + (pair_base + memory.table.row[lane.sub] + token) * kPairColumns +
                      pair_column<kSubLanes>(warp_lane);
      if constexpr (kSubLanes == 2)
        *reinterpret_cast<float4*>(target) = make_float4(pairs[0], pairs[1], pairs[2], pairs[3]);
      if constexpr (kSubLanes == 4) *reinterpret_cast<float2*>(target) = make_float2(pairs[0], pairs[1]);
    }
  }
  // After two steps t and t + 1: one column per lane, over the 8 channel lanes.
  __device__ __forceinline__ void sum_lanes(int tile, int t) {
    __syncwarp();
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      float sum = 0.0f;
#pragma unroll
      for (int c = 0; c < 8; ++c) sum += memory.lanes[warp][k][c][warp_lane ^ ((c & 1) * kStates)];
      memory.warps[tile & 1][warp][t + k][warp_lane] = sum;
    }
    __syncwarp();
  }
  // After a tile: the warps of each chunk in order. A barrier before; the other half of memory.warps serves the next tile.
  __device__ __forceinline__ void write_warps(int tile) {
    const int warps = kWarps / s.subs, t = warp, i = tile * kTile + t, token = in.reverse ? s.chunk_len - 1 - i : i;
#pragma unroll 1
    for (int sub = 0; sub < s.subs; ++sub) {
      float sum = 0.0f;
#pragma unroll
      for (int w = 0; w < kWarps; ++w) {
        if (w / warps == sub) sum += memory.warps[tile & 1][w][t][warp_lane];
      }
      if (token < memory.table.len[sub]) {
        out.pairs[(pair_base + memory.table.row[sub] + token) * kPairColumns + warp_lane] = sum;
      }
    }
  }

  // Back through one tile; lane.state: before the tile.
  __device__ __forceinline__ void backward_tile(int tile) {
    Block decay[kTile], state[kTile];
#pragma unroll
    for (int t = 0; t < kTile; ++t) {
      Four B, C;
      load_pairs(t, B, C);
      float4 d[kLaneChannels];
#pragma unroll
      for (int c = 0; c < kLaneChannels; ++c) d[c] = value(t, c);
      lane.forward_keep(d, B, decay[t], state[t]);
    }
#pragma unroll
    for (int t = kTile - 1; t >= 0; --t) {
      Four B, C;
      load_pairs(t, B, C);
      float4 d[kLaneChannels];
#pragma unroll
      for (int c = 0; c < kLaneChannels; ++c) d[c] = value(t, c);
      float hB[kLaneChannels], hd[kLaneChannels], pairs[2 * kLaneStates];
      lane.backward(d, B, C, decay[t], state[t], t + 1 < kTile ? state[t + 1] : lane.state, hB, hd, pairs);
      sum_states(hB, hd, lane.state_lane);
      __syncwarp();               // all lanes have read delta and u of the step
      if (lane.state_lane < 2) {  // over them
#pragma unroll
        for (int c = 0; c < kLaneChannels; ++c) (lane.state_lane == 0 ? value(t, c).x : value(t, c).y) = hB[c];
      }
      write_step(tile, t, pairs);
      if (kSubLanes == 8 && t % 2 == 0) sum_lanes(tile, t);
    }
  }

  // Pass B. Sums of g * u and of ddelta over the lane's values of every element.
  __device__ void backward_pass(float2 (&sums)[kElements]) {
    PairLoader<T, kSubLanes> loader;
    const int tiles = s.chunk_len / kTile;
    T u[kElements], delta[kElements], z[kElements], dy[kElements];
    float D[kElements];
    const auto load = [&](int tile) {
      loader.begin(s, memory, in.proj, first_sub(), tile, in.reverse);
#pragma unroll
      for (int j = 0; j < kElements; ++j) {
        const bool has = elements[j].has(tile * kTile);
        const int at = elements[j].at + tile * tile_step;
        u[j] = load_if(has, in.u + base + at);
        delta[j] = load_if(has, in.delta + base + at);
        z[j] = load_if(has, in.z + base + at);
        dy[j] = load_if(has, in.dy + base + at);
      }
    };
#pragma unroll
    for (int j = 0; j < kElements; ++j) D[j] = in.D_skip[elements[j].channel];
    load(tiles - 1);
#pragma unroll 1
    for (int tile = tiles - 1; tile >= 0; --tile) {
      float4 mine[kElements];
#pragma unroll
      for (int j = 0; j < kElements; ++j) {
        const float gate = to_float(z[j]);
        mine[j] =
            make_float4(to_float(delta[j]), to_float(u[j]), to_float(dy[j]) * in.share * gate * sigmoid(gate), 0.0f);
        memory.values[warp][elements[j].slot] = mine[j];
      }
      loader.finish(memory);
      __syncwarp();
      if (tile > 0) load(tile - 1);
      restore_state(tile);
      backward_tile(tile);
      if (kSubLanes == 8) {
        __syncthreads();
        write_warps(tile);
      } else {
        __syncwarp();
      }
#pragma unroll
      for (int j = 0; j < kElements; ++j) {
        const float4 r = memory.values[warp][elements[j].slot];
        const float ddelta = softplus_grad(mine[j].x) * r.y;
        sums[j].x = fmaf(mine[j].z, mine[j].y, sums[j].x);
        sums[j].y += ddelta;
        if (!elements[j].has(tile * kTile)) continue;
        const int at = elements[j].at + tile * tile_step;
        out.du[base + at] = from_float<T>(fmaf(D[j], mine[j].z, mine[j].x * r.x));
        out.ddelta[base + at] = from_float<T>(ddelta);
      }
    }
  }
  __device__ __forceinline__ void restore_state(int tile);
  __device__ __forceinline__ void enter();
};

// The states before a tile: kept by pass A, or what enters the chunk.
template <typename T, int kSubLanes>
__device__ __forceinline__ void GradWalk<T, kSubLanes>::restore_state(int tile) {
#pragma unroll
  for (int c = 0; c < kLaneChannels; ++c) {
    if (tile > 0) {
      unpack(memory.states[(tile - 1) * kLaneChannels + c][threadIdx.x], lane.state[c]);
      continue;
    }
    const Walk walk(s, memory.table, blockIdx.x % s.groups, lane.first_channel + c, in.reverse);
    const int64_t channel = (blockIdx.x / s.groups * int64_t{s.subs} + walk.sub) * s.d_inner + walk.channel;
    const float4* entering = reinterpret_cast<const float4*>(in.states + channel * kStates) + lane.state_lane;
    unpack(walk.live() && in.states != nullptr ? *entering : make_float4(0.0f, 0.0f, 0.0f, 0.0f), lane.state[c]);
  }
}

// What enters the chunk from both ends, and the decay rates.
template <typename T, int kSubLanes>
__device__ __forceinline__ void GradWalk<T, kSubLanes>::enter() {
  restore_state(0);
#pragma unroll
  for (int c = 0; c < kLaneChannels; ++c) {
    const Walk walk(s, memory.table, blockIdx.x % s.groups, lane.first_channel + c, in.reverse);
    const int64_t channel = (blockIdx.x / s.groups * int64_t{s.subs} + walk.sub) * s.d_inner + walk.channel;
    const float4* entering = reinterpret_cast<const float4*>(in.adjoints + channel * kStates) + lane.state_lane;
    unpack(walk.live() && in.states != nullptr ? *entering : make_float4(0.0f, 0.0f, 0.0f, 0.0f), lane.q[c]);
#pragma unroll
    for (int n = 0; n < kLaneStates; ++n) {
      const float log = in.A_log[walk.channel * kStates + lane.state_lane * kLaneStates + n];
      lane.a2[c][n] = walk.live() ? -expf(log) * kLog2e : 0.0f;
    }
  }
}

}  // namespace pm::cuda::block
