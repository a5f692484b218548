// The two passes of the gradient scan over a chunk, its shared memory and what it writes; see block_grad.cu.
#pragma once
#include "cuda/scan/block_grad.cuh"

namespace pm::cuda::block {

constexpr int kElements = kTile * kDirectionThreads / kGradThreads;  // values a thread loads per tile
constexpr int kWarps = kGradThreads / kWarp;

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

// Shared memory of a block, in floats from its start.
struct GradMemory {
  float4* states;   // (kGradTiles - 1, kLaneChannels, kGradThreads)
  float4* values;   // (kTile, 96): delta, u, g
  float2* results;  // (kTile, 96): y or h * B; gradient of delta
  float* warps;     // (kWarps, kTile, 32): dB, dC
  float* pairs;     // (subs, kPairStride): B, C of the tile
  static constexpr int kPairStride = kTile * 32 + 4;
  static constexpr int kStateFours = (kGradTiles - 1) * kLaneChannels * kGradThreads;
  static constexpr int kValues = kTile * kDirectionThreads;

  __device__ explicit GradMemory(float4* shared)
      : states(shared),
        values(states + kStateFours),
        results(reinterpret_cast<float2*>(values + kValues)),
        warps(reinterpret_cast<float*>(results + kValues)),
        pairs(warps + kWarps * kTile * 32) {}
  static size_t bytes(int subs) {
    return sizeof(float4) * (kStateFours + kValues) + sizeof(float2) * kValues +
           sizeof(float) * static_cast<size_t>(kWarps * kTile * 32 + subs * kPairStride);
  }
};

// The next tile's B and C on their way from global to shared memory.
template <typename T, int kPieces>
struct PairLoader {
  using Raw = std::conditional_t<std::is_same_v<T, float>, float4, uint2>;
  Raw waiting[kPieces];

  __device__ void begin(const Sequences& s, const SubTable& table, const T* proj, int tile, bool reverse) {
#pragma unroll
    for (int k = 0; k < kPieces; ++k) {
      const int piece = threadIdx.x + k * kGradThreads;
      if (piece >= s.subs * kTile * 8) break;
      const int quad = piece % 8, sub = piece / (8 * kTile), i = tile * kTile + piece / 8 % kTile;
      const int token = min(reverse ? kGradChunk - 1 - i : i, max(table.len[sub] - 1, 0));
      waiting[k] = *reinterpret_cast<const Raw*>(proj + (table.row[sub] + token) * s.proj_width + quad * 4);
    }
  }
  __device__ void finish(const Sequences& s, float* pairs) const {
#pragma unroll
    for (int k = 0; k < kPieces; ++k) {
      const int piece = threadIdx.x + k * kGradThreads;
      if (piece >= s.subs * kTile * 8) break;
      const int sub = piece / (8 * kTile), within = piece % (8 * kTile);
      float4* target = reinterpret_cast<float4*>(pairs + sub * GradMemory::kPairStride) + within;
      if constexpr (std::is_same_v<T, float>) {
        *target = waiting[k];
      } else {
        const uint2 v = waiting[k];
        *target = make_float4(__uint_as_float(v.x << 16), __uint_as_float(v.x & 0xffff0000u),
                              __uint_as_float(v.y << 16), __uint_as_float(v.y & 0xffff0000u));
      }
    }
  }
};

__device__ __forceinline__ void load_pairs(const GradMemory& memory, const GradLane& lane, int t, Four& B, Four& C) {
  const float4* row =
      reinterpret_cast<const float4*>(memory.pairs + lane.sub * GradMemory::kPairStride + t * 32) + lane.state_lane;
  unpack(row[0], B);
  unpack(row[4], C);
}

// Pass A.
template <typename T, bool kSecond, int kPieces>
__device__ __forceinline__ void forward_pass(const Sequences& s, const SubTable& table, const GradMemory& memory,
                                             const GradInputs<T>& in, const GradOutputs<T>& out,
                                             const Element (&elements)[kElements], GradLane& lane) {
  const int64_t tile_step = (in.reverse ? -int64_t{kTile} : int64_t{kTile}) * s.d_inner;
  PairLoader<T, kPieces> loader;
  float u[kElements], delta[kElements], D[kElements];
  const auto load = [&](int tile) {
    loader.begin(s, table, in.proj, tile, in.reverse);
#pragma unroll
    for (int j = 0; j < kElements; ++j) {
      const bool has = elements[j].has(tile * kTile);
      u[j] = has ? to_float(in.u[elements[j].at + tile * tile_step]) : 0.0f;
      delta[j] = has ? to_float(in.delta[elements[j].at + tile * tile_step]) : 0.0f;
    }
  };
#pragma unroll
  for (int j = 0; j < kElements; ++j) D[j] = in.D_skip[elements[j].channel];
  load(0);
  for (int tile = 0; tile < kGradTiles; ++tile) {
    float skip[kElements];
#pragma unroll
    for (int j = 0; j < kElements; ++j) {
      memory.values[elements[j].slot] = make_float4(delta[j], delta[j] * u[j], 0.0f, 0.0f);
      skip[j] = D[j] * u[j];
    }
    loader.finish(s, memory.pairs);
    __syncthreads();
    if (tile + 1 < kGradTiles) load(tile + 1);
    if (tile > 0) {
#pragma unroll
      for (int c = 0; c < kLaneChannels; ++c) {
        const Four& v = lane.state[c];
        memory.states[((tile - 1) * kLaneChannels + c) * kGradThreads + threadIdx.x] =
            make_float4(v[0], v[1], v[2], v[3]);
      }
    }
    float y[kTile][kLaneChannels] = {};
#pragma unroll
    for (int t = 0; t < kTile; ++t) {
      Four B, C;
      load_pairs(memory, lane, t, B, C);
      float2 d[kLaneChannels];
#pragma unroll
      for (int c = 0; c < kLaneChannels; ++c) {
        d[c] = *reinterpret_cast<const float2*>(&memory.values[t * kDirectionThreads + lane.first_channel + c]);
      }
      lane.template forward<true>(d, B, C, y[t]);
    }
    sum_states(y, lane.state_lane);
#pragma unroll
    for (int c = 0; c < kLaneChannels; ++c) {
      memory.results[lane.state_lane * kDirectionThreads + lane.first_channel + c].x = y[0][c];
    }
    __syncthreads();
#pragma unroll
    for (int j = 0; j < kElements; ++j) {
      if (!elements[j].has(tile * kTile)) continue;
      const int64_t at = elements[j].at + tile * tile_step;
      float value = memory.results[elements[j].slot].x + skip[j];
      if constexpr (kSecond) {
        value = (value + to_float(out.y[at])) * in.share;
        const float z = to_float(in.z[at]);
        out.dz[at] = from_float<T>(to_float(in.dy[at]) * value * silu_grad(z));
        value *= z * sigmoid(z);
      }
      out.y[at] = from_float<T>(value);
    }
  }
}

// Back through one tile whose B, C and values lie in shared memory; lane.state: before the tile.
template <typename T, int kSubLanes>
__device__ __forceinline__ void backward_tile(const Sequences& s, const SubTable& table, const GradMemory& memory,
                                              const GradInputs<T>& in, const GradOutputs<T>& out, int64_t pair_base,
                                              int tile, GradLane& lane) {
  const int warp_lane = threadIdx.x % kWarp;
  Block decay[kTile], state[kTile + 1];
#pragma unroll
  for (int t = 0; t < kTile; ++t) {
    Four B, C;
    load_pairs(memory, lane, t, B, C);
    float4 d[kLaneChannels];
#pragma unroll
    for (int c = 0; c < kLaneChannels; ++c) d[c] = memory.values[t * kDirectionThreads + lane.first_channel + c];
    lane.forward_keep(d, B, decay[t], state[t]);
  }
#pragma unroll
  for (int c = 0; c < kLaneChannels; ++c) {
#pragma unroll
    for (int n = 0; n < kLaneStates; ++n) state[kTile][c][n] = lane.state[c][n];
  }
#pragma unroll
  for (int t = kTile - 1; t >= 0; --t) {
    Four B, C;
    load_pairs(memory, lane, t, B, C);
    float4 d[kLaneChannels];
#pragma unroll
    for (int c = 0; c < kLaneChannels; ++c) d[c] = memory.values[t * kDirectionThreads + lane.first_channel + c];
    float hB[kLaneChannels], hd[kLaneChannels], pairs[2 * kLaneStates];
    lane.backward(d, B, C, decay[t], state[t], state[t + 1], hB, hd, pairs);
    sum_states(hB, hd, lane.state_lane);
    if (lane.state_lane < 2) {
#pragma unroll
      for (int c = 0; c < kLaneChannels; ++c) {
        float2& result = memory.results[t * kDirectionThreads + lane.first_channel + c];
        (lane.state_lane == 0 ? result.x : result.y) = hB[c];
      }
    }
    sum_channels<kSubLanes>(pairs, warp_lane);
    const int column = pair_column<kSubLanes>(warp_lane);
    if (kSubLanes == 8 && s.width > kLaneChannels * 8) {  // several warps share the chunk
      memory.warps[(threadIdx.x / kWarp * kTile + t) * 32 + column] = pairs[0];
      continue;
    }
    const int i = tile * kTile + t, token = in.reverse ? kGradChunk - 1 - i : i;
    if (token >= table.len[lane.sub]) continue;
    float* target = out.pairs + (pair_base + table.row[lane.sub] + token) * 32 + column;
    if constexpr (kSubLanes == 2)
      *reinterpret_cast<float4*>(target) = make_float4(pairs[0], pairs[1], pairs[2], pairs[3]);
    if constexpr (kSubLanes == 4) *reinterpret_cast<float2*>(target) = make_float2(pairs[0], pairs[1]);
    if constexpr (kSubLanes == 8) *target = pairs[0];
  }
}

// dB and dC of a tile that several warps share: the warps of each chunk in order.
template <typename T>
__device__ __forceinline__ void write_pairs(const Sequences& s, const SubTable& table, const GradMemory& memory,
                                            const GradInputs<T>& in, const GradOutputs<T>& out, int64_t pair_base,
                                            int tile) {
  const int warps = kWarps / s.subs, t = threadIdx.x / 32, column = threadIdx.x % 32;
  const int i = tile * kTile + t, token = in.reverse ? kGradChunk - 1 - i : i;
  for (int sub = 0; sub < s.subs; ++sub) {
    float sum = 0.0f;
    for (int w = 0; w < warps; ++w) sum += memory.warps[((sub * warps + w) * kTile + t) * 32 + column];
    if (token < table.len[sub]) out.pairs[(pair_base + table.row[sub] + token) * 32 + column] = sum;
  }
}

// Pass B. Sums of g * u and of ddelta over the thread's values of every element.
template <typename T, int kSubLanes, int kPieces>
__device__ __forceinline__ void backward_pass(const Sequences& s, const SubTable& table, const GradMemory& memory,
                                              const GradInputs<T>& in, const GradOutputs<T>& out, int64_t pair_base,
                                              const Element (&elements)[kElements], GradLane& lane,
                                              float2 (&sums)[kElements]) {
  const int64_t tile_step = (in.reverse ? -int64_t{kTile} : int64_t{kTile}) * s.d_inner;
  PairLoader<T, kPieces> loader;
  float u[kElements], delta[kElements], z[kElements], dy[kElements];
  const auto load = [&](int tile) {
    loader.begin(s, table, in.proj, tile, in.reverse);
#pragma unroll
    for (int j = 0; j < kElements; ++j) {
      const bool has = elements[j].has(tile * kTile);
      const int64_t at = elements[j].at + tile * tile_step;
      u[j] = has ? to_float(in.u[at]) : 0.0f;
      delta[j] = has ? to_float(in.delta[at]) : 0.0f;
      z[j] = has ? to_float(in.z[at]) : 0.0f;
      dy[j] = has ? to_float(in.dy[at]) : 0.0f;
    }
  };
  load(kGradTiles - 1);
  for (int tile = kGradTiles - 1; tile >= 0; --tile) {
#pragma unroll
    for (int j = 0; j < kElements; ++j) {
      const float g = dy[j] * in.share * z[j] * sigmoid(z[j]);
      memory.values[elements[j].slot] = make_float4(delta[j], u[j], g, 0.0f);
    }
    loader.finish(s, memory.pairs);
    __syncthreads();
    if (tile > 0) {
      load(tile - 1);
#pragma unroll
      for (int c = 0; c < kLaneChannels; ++c) {
        unpack(memory.states[((tile - 1) * kLaneChannels + c) * kGradThreads + threadIdx.x], lane.state[c]);
      }
    } else {
#pragma unroll
      for (int c = 0; c < kLaneChannels; ++c) {
        const int v = lane.first_channel + c;
        const Walk walk(s, table, blockIdx.x % s.groups, v, in.reverse);
        const int64_t channel = (blockIdx.x / s.groups * int64_t{s.subs} + walk.sub) * s.d_inner + walk.channel;
        const float4* entering = reinterpret_cast<const float4*>(in.states + channel * kStates) + lane.state_lane;
        unpack(walk.live() && in.states != nullptr ? *entering : make_float4(0, 0, 0, 0), lane.state[c]);
      }
    }
    backward_tile<T, kSubLanes>(s, table, memory, in, out, pair_base, tile, lane);
    __syncthreads();
    if (kSubLanes == 8 && s.width > kLaneChannels * 8) write_pairs(s, table, memory, in, out, pair_base, tile);
#pragma unroll
    for (int j = 0; j < kElements; ++j) {
      if (!elements[j].has(tile * kTile)) continue;
      const int64_t at = elements[j].at + tile * tile_step;
      const float4 d = memory.values[elements[j].slot];
      const float2 r = memory.results[elements[j].slot];
      const float ddelta = -expm1f(-d.x) * r.y;  // softplus' = 1 - exp(-softplus)
      out.du[at] = from_float<T>(fmaf(in.D_skip[elements[j].channel], d.z, d.x * r.x));
      out.ddelta[at] = from_float<T>(ddelta);
      sums[j].x = fmaf(d.z, d.y, sums[j].x);
      sums[j].y += ddelta;
    }
  }
}

// dA, dD and dbias of the block: its chunks in order, one row of parameter partials.
__device__ __forceinline__ void store_parameters(const Sequences& s, float4* shared, const GradLane& lane,
                                                 const Element (&elements)[kElements], const float2 (&sums)[kElements],
                                                 float* parameters) {
  float* dA = reinterpret_cast<float*>(shared);                                   // (96, 16)
  float2* scalars = reinterpret_cast<float2*>(dA + kDirectionThreads * kStates);  // (kTile, 96)
  __syncthreads();
#pragma unroll
  for (int c = 0; c < kLaneChannels; ++c) {
#pragma unroll
    for (int n = 0; n < kLaneStates; ++n) {
      dA[(lane.first_channel + c) * kStates + lane.state_lane * kLaneStates + n] = lane.dA[c][n];
    }
  }
#pragma unroll
  for (int j = 0; j < kElements; ++j) scalars[elements[j].slot] = sums[j];
  __syncthreads();
  const int first_channel = blockIdx.x % s.groups * s.width, channels = min(s.width, s.d_inner - first_channel);
  float* row = parameters + (blockIdx.x / s.groups * int64_t{s.d_inner} + first_channel) * kParameters;
  for (int i = threadIdx.x; i < channels * kParameters; i += kGradThreads) {
    const int channel = i / kParameters, n = i % kParameters;
    float sum = 0.0f;
    for (int v = channel; v < s.subs * s.width; v += s.width) {
      if (n < kStates) {
        sum += dA[v * kStates + n];
        continue;
      }
      for (int t = 0; t < kTile; ++t) {
        const float2 pair = scalars[t * kDirectionThreads + v];
        sum += n == kStates ? pair.x : pair.y;
      }
    }
    row[i] = sum;
  }
}

}  // namespace pm::cuda::block
