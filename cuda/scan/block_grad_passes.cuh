// The two passes of the gradient scan over a chunk; see block_grad.cu.
#pragma once
#include "cuda/scan/block_grad_values.cuh"

namespace pm::cuda::block {

// What the passes share: the lane's position and its values.
template <typename T, typename Shape, bool kReverse, bool kWords>
struct GradWalk {
  static constexpr int kChannels = Shape::kChannels;
  using Values = LaneValues<T, kChannels, kWords>;
  using Memory = GradMemory<T, Shape>;
  using Lane = GradLane<kChannels>;
  const Sequences& s;
  const GradInputs<T>& in;
  const GradOutputs<T>& out;
  Memory& memory;
  int warp, warp_lane, state_lane, channel_lane;
  int sub, first_sub;  // chunk of the lane, of the warp's first lane
  Place place;
  LaneSums<T, Shape::kSubLanes> lane_sums;
  Lane lane;
  float D[kChannels];
  float2 parameters[kChannels] = {};  // sums of g * u and of ddelta over the lane's values

  __device__ GradWalk(const Sequences& sequences, const GradInputs<T>& inputs, const GradOutputs<T>& outputs,
                      Memory& shared)
      : s(sequences),
        in(inputs),
        out(outputs),
        memory(shared),
        warp(static_cast<int>(threadIdx.x) / kWarp),
        warp_lane(static_cast<int>(threadIdx.x) % kWarp),
        state_lane(warp_lane / kChannelLanes),
        channel_lane(warp_lane % kChannelLanes),
        sub(min(first_channel() / s.width, s.subs - 1)),
        first_sub(Shape::kWarpSubs == 1 ? sub : warp * Shape::kWarpSubs),
        place(s, memory.table, state_lane, first_channel(), kReverse, kWords),
        lane_sums(warp_lane) {}

  // Of the lane's, among the 96 of the block.
  __device__ int first_channel() const { return (warp * kChannelLanes + channel_lane) * kChannels; }
  // Token of step i of a chunk.
  __device__ int token(int i) const { return kReverse ? s.chunk_len - 1 - i : i; }

  // B or C of a step for the lane's states.
  __device__ __forceinline__ void load_row(int t, int column, Four& row) const {
    const int warp_sub = Shape::kWarpSubs == 1 ? 0 : channel_lane / Shape::kSubLanes;
    const float* pairs = memory.pairs[warp] + warp_sub * Memory::kSubStride + t * kPairColumns + column;
    unpack(reinterpret_cast<const float4*>(pairs)[state_lane], row);
  }

  // Values on their way from global memory: what pass A reads of a tile, and pass B.
  struct Ahead {
    PairLoader<T, Shape> pairs;
    Values u, delta;
  };
  struct AheadBack : Ahead {
    Values z, dy;
  };
  // at: of the lane's values in that tile.
  __device__ __forceinline__ void fetch(int tile, int64_t at, Ahead& ahead) const {
    ahead.pairs.begin(s, memory, first_sub, token(tile * kTile + warp_lane / 8));
    ahead.u.load(in.u, place, tile, at);
    ahead.delta.load(in.delta, place, tile, at);
  }
  __device__ __forceinline__ void fetch_back(int tile, int64_t at, AheadBack& ahead) const {
    fetch(tile, at, ahead);
    ahead.z.load(in.z, place, tile, at);
    ahead.dy.load(in.dy, place, tile, at);
  }

  // Both passes. What their first tiles need is asked for before anything is waited for.
  __device__ __forceinline__ void run() {
    const int last = s.chunk_len / kTile - 1, step = (kReverse ? -kTile : kTile) * s.d_inner;
    Ahead even, odd;
    AheadBack back;
    int64_t at = place.at + last * step;
    if (last > 0) fetch(0, place.at, even);
    if (last > 1) fetch(1, place.at + step, odd);
    fetch_back(last, at, back);
    enter();
    int64_t ahead_at = place.at + 2 * step;
#pragma unroll 1
    for (int tile = 0; tile < last; tile += 2, ahead_at += 2 * step) {
      advance(tile, tile + 2 < last, ahead_at, even);
      if (tile + 1 < last) advance(tile + 1, tile + 3 < last, ahead_at + step, odd);
    }
    keep_state(last);
#pragma unroll 1
    for (int tile = last; tile >= 0; --tile, at -= step) retreat(tile, at, at - step, back);
    if constexpr (Shape::kWarpSubs == 1) store_pairs();
  }

  // Pass A: from the state before a tile to that before the next. Values come from two tiles ahead.
  __device__ __forceinline__ void advance(int tile, bool goes_on, int64_t ahead_at, Ahead& ahead) {
    float2 d[kChannels];
#pragma unroll
    for (int c = 0; c < kChannels; ++c) d[c] = make_float2(ahead.delta[c], ahead.delta[c] * ahead.u[c]);
    memory.values[warp].put(state_lane, channel_lane, d);
    ahead.pairs.finish(memory);
    __syncwarp();
    if (goes_on) fetch(tile + 2, ahead_at, ahead);
    keep_state(tile);
#pragma unroll
    for (int t = 0; t < kTile; ++t) {
      Four B;
      load_row(t, 0, B);
      memory.values[warp].get(t, channel_lane, d);
      lane.forward(d, B);
    }
    __syncwarp();  // before the next tile's values
  }

  // Pass B: a tile forward again and back. Values come from one tile ahead.
  __device__ __forceinline__ void retreat(int tile, int64_t at, int64_t ahead_at, AheadBack& ahead) {
    restore_state(tile);
    float2 d[kChannels];
    float u[kChannels], g[kChannels];
    const Values z = ahead.z, dy = ahead.dy;
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      d[c] = make_float2(ahead.delta[c], ahead.delta[c] * ahead.u[c]);
      u[c] = ahead.u[c];
      g[c] = dy[c] * in.share * z[c] * sigmoid(z[c]);
    }
    memory.values[warp].put(state_lane, channel_lane, d, u, g);
    ahead.pairs.finish(memory);
    __syncwarp();
    if (!kReverse && tile > 0) fetch_back(tile - 1, ahead_at, ahead);
    typename Lane::Sums sums;
    Values other;  // y of the forward direction, in the reverse one
    through_tile(tile, sums, [&](int t) {
      if (!kReverse || t != kTile / 2) return;  // the reverse direction has no registers left before
      other.load(out.y, place, tile, at);
      if (tile > 0) fetch_back(tile - 1, ahead_at, ahead);
    });
    sum_states(sums.y, state_lane);
    sum_states(sums.hB, state_lane);
    sum_states(sums.hA, state_lane);

    // Kept there rather than in registers, which are all in use.
    memory.values[warp].get(state_lane, channel_lane, d, u, g);
    float y[kChannels], du[kChannels], ddelta[kChannels];
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      y[c] = fmaf(D[c], u[c], sums.y[0][c]);
      du[c] = fmaf(D[c], g[c], d[c].x * sums.hB[0][c]);
      ddelta[c] = softplus_grad(d[c].x) * fmaf(u[c], sums.hB[0][c], kLn2 * sums.hA[0][c]);
      parameters[c].x = fmaf(g[c], u[c], parameters[c].x);
      parameters[c].y += ddelta[c];
    }
    Values::store(du, out.du, place, tile, at);
    Values::store(ddelta, out.ddelta, place, tile, at);
    if constexpr (kReverse) gate(y, z, dy, other, tile, at);
    Values::store(y, out.y, place, tile, at);
    __syncwarp();  // before the next tile's values
  }

  // The four steps of a tile again with decays and states in registers, then back through them. lane.state: before the tile.
  // before(t): called before step t on the way back.
  template <typename Fn>
  __device__ __forceinline__ void through_tile(int tile, typename Lane::Sums& sums, Fn&& before) {
    typename Lane::Block decay[kTile], state[kTile];
    float2 d[kChannels];
#pragma unroll
    for (int t = 0; t < kTile; ++t) {
      Four B;
      load_row(t, 0, B);
      memory.values[warp].get(t, channel_lane, d);
      lane.forward_keep(d, B, decay[t], state[t]);
    }
#pragma unroll
    for (int t = kTile - 1; t >= 0; --t) {
      before(t);
      Four B, C;
      load_row(t, 0, B);
      load_row(t, kStates, C);
      float g[kChannels], pairs[2 * kLaneStates];
      memory.values[warp].get(t, channel_lane, d, g);
      lane.backward(d, g, B, C, decay[t], state[t], t + 1 < kTile ? state[t + 1] : lane.state, t, sums, pairs);
      write_step(tile, t, pairs);
    }
  }

  // dB and dC of a step over the channels of the warp: to shared memory, or where chunks are shared inside the warp to global
  // memory.
  __device__ __forceinline__ void write_step(int tile, int t, const float (&pairs)[2 * kLaneStates]) {
    float sum[4];
    lane_sums.add(pairs, sum);
    const int half = warp_lane / 4 % 2, column = lane_sums.pair_column(warp_lane);
    if constexpr (Shape::kWarpSubs == 1) {
      float* row = memory.sums(warp, tile)[half][t];
      *reinterpret_cast<float2*>(row + Memory::swapped(half, column)) = make_float2(sum[0], sum[2]);
    } else {
      constexpr int kHalfSubs = Shape::kWarpSubs / 2;
#pragma unroll
      for (int i = 0; i < kHalfSubs; ++i) {
        const GradChunkRows<T>& chunk = memory.chunks[first_sub + half * kHalfSubs + i];
        const int row = token(tile * kTile + t);
        float* target = chunk.pairs + (row * kPairColumns + column);
        if (row < chunk.len) *reinterpret_cast<float2*>(target) = make_float2(sum[i], sum[2 + i]);
      }
    }
  }
  // dB and dC of every chunk of the block over its warps, in order. Call from every thread, after the last tile.
  __device__ void store_pairs() {
    constexpr int kQuads = kPairColumns / 4, kTogether = Shape::kWarps % 3 == 0 ? 3 : 1;
    const int warps = Shape::kWarps / s.subs;
    __syncthreads();
    for (int chunk_id = 0; chunk_id < s.subs; ++chunk_id) {
      const GradChunkRows<T>& chunk = memory.chunks[chunk_id];
      for (int i = static_cast<int>(threadIdx.x); i < s.chunk_len * kQuads; i += Shape::kThreads) {
        const int column = i % kQuads * 4, step = i / kQuads, row = token(step);
        if (row >= chunk.len) continue;
        float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll 1
        for (int w = chunk_id * warps; w < (chunk_id + 1) * warps; w += kTogether) {
#pragma unroll
          for (int k = 0; k < 2 * kTogether; ++k) {
            const float* tile_row = memory.sums(w + k / 2, step / kTile)[k % 2][step % kTile];
            const float4 v = *reinterpret_cast<const float4*>(tile_row + Memory::swapped(k % 2, column));
            sum = make_float4(sum.x + v.x, sum.y + v.y, sum.z + v.z, sum.w + v.w);
          }
        }
        *reinterpret_cast<float4*>(chunk.pairs + (row * kPairColumns + column)) = sum;
      }
    }
  }

  // y of both directions, gated, and dz, from the reverse one's y.
  __device__ __forceinline__ void gate(float (&y)[kChannels], const Values& z, const Values& dy, const Values& other,
                                       int tile, int64_t at) const {
    float dz[kChannels];
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      const float both = (y[c] + other[c]) * in.share, gate = sigmoid(z[c]);
      dz[c] = dy[c] * both * gate * (1.0f + z[c] * (1.0f - gate));
      y[c] = both * z[c] * gate;
    }
    Values::store(dz, out.dz, place, tile, at);
  }

  // The states before a tile: kept by pass A, for pass B.
  __device__ __forceinline__ void keep_state(int tile) {
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      const Four& v = lane.state[c];
      memory.states[warp][tile][c][warp_lane] = make_float4(v[0], v[1], v[2], v[3]);
    }
  }
  __device__ __forceinline__ void restore_state(int tile) {
#pragma unroll
    for (int c = 0; c < kChannels; ++c) unpack(memory.states[warp][tile][c][warp_lane], lane.state[c]);
  }
  // What enters the chunk from both ends, the decay rates and D.
  __device__ __forceinline__ void enter() {
    entering(in.states, lane.state);
    entering(in.adjoints, lane.q);
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      const bool has = c < place.count;
      D[c] = has ? in.D_skip[place.channel + c] : 0.0f;
      const float* log = in.A_log + (place.channel + c) * kStates + state_lane * kLaneStates;
#pragma unroll
      for (int n = 0; n < kLaneStates; ++n) lane.a2[c][n] = has ? -expf(log[n]) * kLog2e : 0.0f;
    }
  }
  // Of the summaries of all chunks (null: zeros) what enters the lane's.
  __device__ __forceinline__ void entering(const float* summaries, typename Lane::Block& target) const {
    const float4* source = reinterpret_cast<const float4*>(summaries) +
                           (memory.chunks[sub].summary + place.channel) * (kStates / 4) + state_lane;
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      const bool has = c < place.count && summaries != nullptr;
      unpack(has ? source[c * (kStates / 4)] : make_float4(0.0f, 0.0f, 0.0f, 0.0f), target[c]);
    }
  }
};

}  // namespace pm::cuda::block
