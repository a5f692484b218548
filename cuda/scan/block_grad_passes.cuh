// The two passes of the gradient scan over a chunk; see block_grad.cu.
#pragma once
#include "cuda/scan/block_grad_values.cuh"

namespace pm::cuda::block {

// What the passes share: the lane's position and its values.
template <typename T, int kSubLanes, bool kReverse, bool kWords>
struct GradWalk {
  using Values = Three<T, kWords>;
  using Memory = GradMemory<T, kSubLanes>;
  const Sequences& s;
  const GradInputs<T>& in;
  const GradOutputs<T>& out;
  Memory& memory;
  int warp, warp_lane;
  int first_sub;  // chunk of the warp's first channel
  GradLane lane;
  Place place;
  float D[kLaneChannels];

  __device__ int64_t at(int tile) const { return place.at + int64_t{tile} * ((kReverse ? -kTile : kTile) * s.d_inner); }
  // Token of step i of a chunk.
  __device__ int token(int i) const { return kReverse ? s.chunk_len - 1 - i : i; }

  // B and C of a step for the lane's states.
  __device__ __forceinline__ void load_pairs(int t, Four& B, Four& C) const {
    const int sub = kSubLanes == 8 ? 0 : warp_lane / 4 / kSubLanes;
    const float4* row =
        reinterpret_cast<const float4*>(memory.pairs[warp] + sub * Memory::kSubStride + t * kPairColumns) +
        lane.state_lane;
    unpack(row[0], B);
    unpack(row[4], C);
  }
  // Of the lane's channel c and step t of the tile.
  __device__ __forceinline__ float4& value(int t, int c) const {
    return memory.values[warp][t * Memory::kValueStride + warp_lane / 4 * kLaneChannels + c];
  }
  __device__ __forceinline__ void begin_pairs(PairLoader<T, kSubLanes>& loader, int tile) const {
    loader.begin(s, memory, first_sub, token(tile * kTile + warp_lane / 8));
  }

  __device__ __forceinline__ void forward_tile(float (&y)[kTile][kLaneChannels]) {
#pragma unroll
    for (int t = 0; t < kTile; ++t) {
      Four B, C;
      load_pairs(t, B, C);
      float2 d[kLaneChannels];
#pragma unroll
      for (int c = 0; c < kLaneChannels; ++c) d[c] = *reinterpret_cast<const float2*>(&value(t, c));
      lane.forward(d, B, C, y[t]);
    }
    sum_states(y, lane.state_lane);
  }

  // What the second direction needs to write y and dz of a tile.
  struct Gate {
    Values z, dy, y;
  };
  __device__ __forceinline__ void load_gate(int tile, Gate& gate) const {
    gate.z.load(in.z, place, tile, at(tile));
    gate.dy.load(in.dy, place, tile, at(tile));
    gate.y.load(out.y, place, tile, at(tile));
  }
  // y of the direction, and in the second one with the other's and gated: out.y, out.dz.
  __device__ __forceinline__ void write_y(int tile, float (&y)[kLaneChannels], const Gate& loaded) const {
    if constexpr (kReverse) {
      float dz[kLaneChannels];
#pragma unroll
      for (int c = 0; c < kLaneChannels; ++c) {
        const float both = (y[c] + loaded.y[c]) * in.share, z = loaded.z[c], gate = sigmoid(z);
        dz[c] = loaded.dy[c] * both * gate * (1.0f + z * (1.0f - gate));
        y[c] = both * z * gate;
      }
      Values::store(dz, out.dz, place, tile, at(tile));
    }
    Values::store(y, out.y, place, tile, at(tile));
  }

  // Pass A.
  __device__ void forward_pass() {
    PairLoader<T, kSubLanes> loader;
    const int tiles = s.chunk_len / kTile;
    Values u, delta;
    const auto load = [&](int tile) {
      begin_pairs(loader, tile);
      u.load(in.u, place, tile, at(tile));
      delta.load(in.delta, place, tile, at(tile));
    };
    load(0);
#pragma unroll 1
    for (int tile = 0; tile < tiles; ++tile) {
      float skip[kLaneChannels];
#pragma unroll
      for (int c = 0; c < kLaneChannels; ++c) {
        *reinterpret_cast<float2*>(&value(lane.state_lane, c)) = make_float2(delta[c], delta[c] * u[c]);
        skip[c] = D[c] * u[c];
      }
      loader.finish(memory);
      __syncwarp();
      if (tile + 1 < tiles) load(tile + 1);
      Gate gate;
      if constexpr (kReverse) load_gate(tile, gate);
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
      for (int c = 0; c < kLaneChannels; ++c) y[0][c] += skip[c];
      write_y(tile, y[0], gate);
      __syncwarp();  // before the next tile's values
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
      const GradChunkRows<T>& chunk = memory.chunks[lane.sub];
      const int row = token(tile * kTile + t);
      if (row >= chunk.len) return;
      float* target = chunk.pairs + (row * kPairColumns + pair_column<kSubLanes>(warp_lane));
      if constexpr (kSubLanes == 2)
        *reinterpret_cast<float4*>(target) = make_float4(pairs[0], pairs[1], pairs[2], pairs[3]);
      if constexpr (kSubLanes == 4) *reinterpret_cast<float2*>(target) = make_float2(pairs[0], pairs[1]);
    }
  }
  // After two steps t and t + 1, half of the warp each: two columns per lane, over the 8 channel lanes.
  __device__ __forceinline__ void sum_lanes(int tile, int t) {
    const int k = warp_lane / 16, column = warp_lane % 16 * 2;
    __syncwarp();
    float2 sum;
#pragma unroll
    for (int c = 0; c < 8; ++c) {
      const float2 v = *reinterpret_cast<const float2*>(&memory.lanes[warp][k][c][column ^ ((c & 1) * kStates)]);
      sum = c == 0 ? v : make_float2(sum.x + v.x, sum.y + v.y);
    }
    *reinterpret_cast<float2*>(&memory.warps[tile & 1][warp][t + k][column]) = sum;
    __syncwarp();
  }
  // After a tile: the warps of each chunk in order, a step to a warp. A barrier before; the other half of memory.warps serves
  // the next tile.
  __device__ __forceinline__ void write_warps(int tile) {
    const int row = token(tile * kTile + warp);
    float sum = 0.0f;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      sum += memory.warps[tile & 1][w][warp][warp_lane];
      if (s.subs < kWarps / ((w + 1) & -(w + 1))) continue;  // 1, 2 or 4 chunks: it goes on in the next warp
      const GradChunkRows<T>& chunk = memory.chunks[w * s.subs / kWarps];
      if (row < chunk.len) chunk.pairs[row * kPairColumns + warp_lane] = sum;
      sum = 0.0f;
    }
  }

  // Back through one tile; lane.state: before the tile. Leaves the sums over states of the lane's own values: h * B and
  // q * A * log2(e).
  __device__ __forceinline__ void backward_tile(int tile, float (&hB)[kTile][kLaneChannels],
                                                float (&hA)[kTile][kLaneChannels]) {
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
      for (int c = 0; c < kLaneChannels; ++c) {
        const float4 v = value(t, c);
        d[c] = make_float4(v.x, v.y, v.w, 0.0f);
      }
      float pairs[2 * kLaneStates];
      lane.backward(d, B, C, decay[t], state[t], t + 1 < kTile ? state[t + 1] : lane.state, hB[t], hA[t], pairs);
      write_step(tile, t, pairs);
      if (kSubLanes == 8 && t % 2 == 0) sum_lanes(tile, t);
    }
    sum_states(hB, lane.state_lane);
    sum_states(hA, lane.state_lane);
  }

  // Pass B. Sums of g * u and of ddelta over the lane's values.
  __device__ void backward_pass(float2 (&sums)[kLaneChannels]) {
    PairLoader<T, kSubLanes> loader;
    const int tiles = s.chunk_len / kTile;
    Values u, delta, z, dy;
    const auto load = [&](int tile) {
      begin_pairs(loader, tile);
      u.load(in.u, place, tile, at(tile));
      delta.load(in.delta, place, tile, at(tile));
      z.load(in.z, place, tile, at(tile));
      dy.load(in.dy, place, tile, at(tile));
    };
    load(tiles - 1);
#pragma unroll 1
    for (int tile = tiles - 1; tile >= 0; --tile) {
#pragma unroll
      for (int c = 0; c < kLaneChannels; ++c) {
        const float gate = z[c], g = dy[c] * in.share * gate * sigmoid(gate);
        value(lane.state_lane, c) = make_float4(delta[c], delta[c] * u[c], u[c], g);
      }
      loader.finish(memory);
      __syncwarp();
      if (tile > 0) load(tile - 1);
      restore_state(tile);
      float hB[kTile][kLaneChannels], hA[kTile][kLaneChannels];
      backward_tile(tile, hB, hA);
      if (kSubLanes == 8) {
        __syncthreads();
        write_warps(tile);
      } else {
        __syncwarp();
      }
      float du[kLaneChannels], ddelta[kLaneChannels];
#pragma unroll
      for (int c = 0; c < kLaneChannels; ++c) {
        const float4 mine = value(lane.state_lane, c);  // kept here rather than in registers, which are all in use
        const float delta_now = mine.x, u_now = mine.z, g = mine.w;
        du[c] = fmaf(D[c], g, delta_now * hB[0][c]);
        ddelta[c] = softplus_grad(delta_now) * fmaf(u_now, hB[0][c], kLn2 * hA[0][c]);
        sums[c].x = fmaf(g, u_now, sums[c].x);
        sums[c].y += ddelta[c];
      }
      Values::store(du, out.du, place, tile, at(tile));
      Values::store(ddelta, out.ddelta, place, tile, at(tile));
    }
  }

  // The states before a tile: kept by pass A, or what enters the chunk.
  __device__ __forceinline__ void restore_state(int tile) {
    if (tile == 0) return entering(in.states, lane.state);
#pragma unroll
    for (int c = 0; c < kLaneChannels; ++c) {
      unpack(memory.states[(tile - 1) * kLaneChannels + c][threadIdx.x], lane.state[c]);
    }
  }
  // Of the summaries of all chunks (null: zeros) what enters the lane's.
  __device__ __forceinline__ void entering(const float* summaries, Block& target) const {
    const float4* source = reinterpret_cast<const float4*>(summaries) +
                           (memory.chunks[lane.sub].summary + place.channel) * (kStates / 4) + lane.state_lane;
#pragma unroll
    for (int c = 0; c < kLaneChannels; ++c) {
      const bool has = c < place.count && summaries != nullptr;
      unpack(has ? source[c * (kStates / 4)] : make_float4(0.0f, 0.0f, 0.0f, 0.0f), target[c]);
    }
  }
  // What enters the chunk from both ends, the decay rates and D.
  __device__ __forceinline__ void enter() {
    entering(in.states, lane.state);
    entering(in.adjoints, lane.q);
#pragma unroll
    for (int c = 0; c < kLaneChannels; ++c) {
      const bool has = c < place.count;
      D[c] = has ? in.D_skip[place.channel + c] : 0.0f;
      const float* log = in.A_log + (place.channel + c) * kStates + lane.state_lane * kLaneStates;
#pragma unroll
      for (int n = 0; n < kLaneStates; ++n) lane.a2[c][n] = has ? -expf(log[n]) * kLog2e : 0.0f;
    }
  }
};

}  // namespace pm::cuda::block
