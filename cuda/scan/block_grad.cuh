// A lane of the gradient scan of the fused Mamba block: what it holds, one step forward, one step back, and the sums over
// lanes. The walk over a chunk is in block_grad.cu.
//
// Layout of a warp. Lane = 8 * state_lane + channel_lane; a lane owns 4 states of 2 neighbouring channels:
//
//                       channels 0-1   2-3    4-5   ...   14-15
//       states  0- 3      lane 0        1      2             7
//       states  4- 7           8        9     10            15
//       states  8-11          16       17     18            23
//       states 12-15          24       25     26            31
//
// Six warps of 16 channels hold 96, as the 96 threads of a direction do in the other kernels. Where 16 does not divide the
// channels of a chunk, a lane owns three, and four warps of 24 hold the 96: chunks of 6 or 12 channels take 2 or 4 channel
// lanes, so 4 or 2 chunks share a warp.
//
// Sums over states (y, du, ddelta) go over 4 lanes, for the four steps of a tile together: each lane ends with the sums of one
// step, whose values it loads and writes too. Sums over channels (dB, dC) are made in the lane first, then over four
// neighbouring lanes by tensor cores.
#pragma once
#include "cuda/scan/block.cuh"

namespace pm::cuda::block {

constexpr int kLaneStates = 4;
constexpr int kChannelLanes = kWarp / kLaneStates;
constexpr int kGradTiles = kGradChunk / kTile;
constexpr int kParameters = kStates + 2;  // per channel: dA, dD, dbias

// How channels lie in a block: channels of a lane, and the channel lanes of a warp that share a chunk (2, 4 or all 8).
template <int kLaneChannels, int kLanesOfChunk>
struct GradShape {
  static constexpr int kChannels = kLaneChannels, kSubLanes = kLanesOfChunk;
  static constexpr int kWarpSubs = kChannelLanes / kSubLanes;  // chunks of a warp
  static constexpr int kWarps = kDirectionThreads / (kChannelLanes * kChannels), kThreads = kWarps * kWarp;
};

// The four states of a lane for one channel.
using Four = float[kLaneStates];

__device__ __forceinline__ void unpack(float4 v, Four& four) {
  four[0] = v.x, four[1] = v.y, four[2] = v.z, four[3] = v.w;
}

// 1 - exp(-delta), the derivative of softplus where it is delta >= 0. Near zero, where the difference cancels, a polynomial:
// relative error below 1e-6 everywhere.
__device__ __forceinline__ float softplus_grad(float delta) {
  float p = fmaf(-0.037728974f, delta, 0.16606225f);
  p = fmaf(p, delta, -0.49996999f);
  p = fmaf(p, delta, 0.99999977f);
  return delta < 0.25f ? p * delta : 1.0f - exp2_approx(-kLog2e * delta);
}

template <int kChannels>
struct GradLane {
  using Block = float[kChannels][kLaneStates];
  Block a2, state, q;  // q: decay * h of the step after
  Block dA = {};

  // Step with (delta, delta * u) of the channels in d and the row of B.
  __device__ __forceinline__ void forward(const float2 (&d)[kChannels], const Four& B) {
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
#pragma unroll
      for (int n = 0; n < kLaneStates; ++n) {
        state[c][n] = fmaf(exp2_approx(d[c].x * a2[c][n]), state[c][n], d[c].y * B[n]);
      }
    }
  }
  // The same, keeping the decays and the states before the step.
  __device__ __forceinline__ void forward_keep(const float2 (&d)[kChannels], const Four& B, Block& decay,
                                               Block& before) {
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
#pragma unroll
      for (int n = 0; n < kLaneStates; ++n) {
        decay[c][n] = exp2_approx(d[c].x * a2[c][n]);
        before[c][n] = state[c][n];
        state[c][n] = fmaf(decay[c][n], state[c][n], d[c].y * B[n]);
      }
    }
  }

  // Sums over the lane's states of four steps: <C, s>, h * B, and q * A * log2(e) for the gradient of delta.
  struct Sums {
    float y[kTile][kChannels], hB[kTile][kChannels], hA[kTile][kChannels];
  };
  // Step t of a tile back, with g; after: states after the step. Leaves sums over the lane's channels in pairs: dB, then dC.
  __device__ __forceinline__ void backward(const float2 (&d)[kChannels], const float (&g)[kChannels], const Four& B,
                                           const Four& C, const Block& decay, const Block& before, const Block& after,
                                           int t, Sums& sums, float (&pairs)[2 * kLaneStates]) {
#pragma unroll
    for (int n = 0; n < 2 * kLaneStates; ++n) pairs[n] = 0.0f;
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      float y = 0.0f, hB = 0.0f, hA = 0.0f;
#pragma unroll
      for (int n = 0; n < kLaneStates; ++n) {
        const float h = fmaf(C[n], g[c], q[c][n]);
        pairs[n] = fmaf(h, d[c].y, pairs[n]);
        pairs[kLaneStates + n] = fmaf(g[c], after[c][n], pairs[kLaneStates + n]);
        y = fmaf(C[n], after[c][n], y);
        hB = fmaf(h, B[n], hB);
        q[c][n] = decay[c][n] * h;
        const float carried = q[c][n] * before[c][n];
        hA = fmaf(carried, a2[c][n], hA);
        dA[c][n] = fmaf(carried, d[c].x, dA[c][n]);
      }
      sums.y[t][c] = y, sums.hB[t][c] = hB, sums.hA[t][c] = hA;
    }
  }
};

// Sums over the four state lanes. v[t][c] of four steps: lane state_lane ends with step state_lane in v[0].
template <int kChannels>
__device__ __forceinline__ void sum_states(float (&v)[kTile][kChannels], int state_lane) {
  const bool upper = (state_lane & 2) != 0, odd = (state_lane & 1) != 0;
#pragma unroll
  for (int t = 0; t < 2; ++t) {
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      const float keep = upper ? v[t + 2][c] : v[t][c], send = upper ? v[t][c] : v[t + 2][c];
      v[t][c] = keep + __shfl_xor_sync(0xffffffffu, send, 2 * kChannelLanes);
    }
  }
#pragma unroll
  for (int c = 0; c < kChannels; ++c) {
    const float keep = odd ? v[1][c] : v[0][c], send = odd ? v[0][c] : v[1][c];
    v[0][c] = keep + __shfl_xor_sync(0xffffffffu, send, kChannelLanes);
  }
}

// The same of one value of every lane, for all of them.
__device__ __forceinline__ float add_state_lanes(float v) {
  v += __shfl_xor_sync(0xffffffffu, v, kChannelLanes);
  return v + __shfl_xor_sync(0xffffffffu, v, 2 * kChannelLanes);
}

// Sums of dB and dC over four neighbouring lanes (kSubLanes 2: over two), all eight values by two products of tensor cores:
//
//   A (16, 8)  lane l holds four of its values, dB or dC of its states n to n + 3: rows l / 4 (n, n + 2) and l / 4 + 8
//              (n + 1, n + 3), columns l % 4 (n, n + 1) and l % 4 + 4 (n + 2, n + 3)
//   B (8, 8)   ones and zeros: columns 0-1 add columns 0-3 of the dB matrix, columns 2-3 its columns 4-7; columns 4-7 the
//              same of the dC matrix. kSubLanes 2: of each four, even columns add the first two, odd ones the others
//   sum        lane l ends with rows l / 4 and l / 4 + 8 of columns 2 * (l % 4) and 2 * (l % 4) + 1, that is two neighbouring
//              columns of a step, pair_column(l) and the next, in sum[0] and sum[2]. kSubLanes 2: of the first two lanes;
//              of the others in sum[1] and sum[3]
//
// A product sees the first 11 bits of a term. That is enough where sums end in bfloat16; float32 sends the rest of each term
// through a second product: 22 bits.
template <typename T, int kSubLanes>
struct LaneSums {
  static constexpr bool kSplit = std::is_same_v<T, float>;
  float ones[2][2];  // of the dB and the dC product: rows l % 4 and l % 4 + 4 of column l / 4

  __device__ explicit LaneSums(int lane) {
    const bool mine = kSubLanes != 2 || lane / 4 % 2 == lane % 4 / 2;
#pragma unroll
    for (int i = 0; i < 4; ++i) ones[i / 2][i % 2] = static_cast<float>(mine && lane / 8 == i);
  }
  __device__ __forceinline__ void add(const float (&pairs)[2 * kLaneStates], float (&sum)[4]) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) sum[i] = 0.0f;
#pragma unroll
    for (int m = 0; m < 2; ++m) {
      unsigned first[4], rest[4];
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        const float v = pairs[m * kLaneStates + n];
        first[n] = kSplit ? __float_as_uint(v) & 0xffffe000u : __float_as_uint(v);
        rest[n] = __float_as_uint(v - __uint_as_float(first[n]));
      }
      multiply(first, ones[m], sum);
      if constexpr (kSplit) multiply(rest, ones[m], sum);
    }
  }
  __device__ static int pair_column(int lane) { return lane % 4 / 2 * kStates + lane / 8 * kLaneStates + lane % 2 * 2; }

 private:
  __device__ static __forceinline__ void multiply(const unsigned (&a)[4], const float (&b)[2], float (&sum)[4]) {
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
        "%3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(__float_as_uint(b[0])), "r"(__float_as_uint(b[1])));
  }
};

}  // namespace pm::cuda::block
