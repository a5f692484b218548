// A lane of the gradient scan of the fused Mamba block: what it holds, one step forward, one step back, and the sums over
// lanes. The walk over a chunk is in block_grad.cu.
//
// Layout of a warp. Lane = 4 * channel_lane + state_lane; a lane owns 4 states of 3 channels:
//
//                       channels 0-2   3-5    6-8   ...   21-23
//       states  0- 3      lane 0        4      8            28
//       states  4- 7           1        5      9            29
//       states  8-11           2        6     10            30
//       states 12-15           3        7     11            31
//
// Sums over states (y, du, ddelta) go over 4 lanes, for the four steps of a tile together: each lane ends with the sums of one
// step, whose values it loads and writes too. Sums over channels (dB, dC) are made in the lane first and go over at most 8
// lanes. Chunks of 6 or 12 channels take 2 or 4 channel lanes, so 4
// or 2 chunks share a warp. Four warps hold 96 channels, as the 96 threads of a direction do in the other kernels.
#pragma once
#include "cuda/scan/block.cuh"

namespace pm::cuda::block {

constexpr int kGradThreads = 128;
constexpr int kLaneChannels = 3;
constexpr int kLaneStates = 4;
constexpr int kGradTiles = kGradChunk / kTile;
constexpr int kParameters = kStates + 2;  // per channel: dA, dD, dbias

// The four states of a lane for one channel.
using Four = float[kLaneStates];
using Block = float[kLaneChannels][kLaneStates];

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

struct GradLane {
  int state_lane, first_channel, sub;  // first_channel: of the lane's three, among the 96
  float a2[kLaneChannels][kLaneStates];
  float state[kLaneChannels][kLaneStates], q[kLaneChannels][kLaneStates];  // q: decay * h of the step after
  float dA[kLaneChannels][kLaneStates] = {};

  // Step with (delta, delta * u) of the channels in d and the rows of B, C. Adds <C, s> to y.
  __device__ __forceinline__ void forward(const float2 (&d)[kLaneChannels], const Four& B, const Four& C,
                                          float (&y)[kLaneChannels]) {
#pragma unroll
    for (int c = 0; c < kLaneChannels; ++c) {
#pragma unroll
      for (int n = 0; n < kLaneStates; ++n) {
        state[c][n] = fmaf(exp2_approx(d[c].x * a2[c][n]), state[c][n], d[c].y * B[n]);
        y[c] = fmaf(C[n], state[c][n], y[c]);
      }
    }
  }
  // The same without y, keeping the decays and the states before the step.
  __device__ __forceinline__ void forward_keep(const float4 (&d)[kLaneChannels], const Four& B, Block& decay,
                                               Block& before) {
#pragma unroll
    for (int c = 0; c < kLaneChannels; ++c) {
#pragma unroll
      for (int n = 0; n < kLaneStates; ++n) {
        decay[c][n] = exp2_approx(d[c].x * a2[c][n]);
        before[c][n] = state[c][n];
        state[c][n] = fmaf(decay[c][n], state[c][n], d[c].y * B[n]);
      }
    }
  }
  // Step back. d: (delta, delta * u, g, -); after: states after the step. Leaves sums over the lane's states in hB (h * B)
  // and hA (q * A * log2(e), for the gradient of delta), sums over its channels in pairs: dB, then dC.
  __device__ __forceinline__ void backward(const float4 (&d)[kLaneChannels], const Four& B, const Four& C,
                                           const Block& decay, const Block& before, const Block& after,
                                           float (&hB)[kLaneChannels], float (&hA)[kLaneChannels],
                                           float (&pairs)[2 * kLaneStates]) {
#pragma unroll
    for (int n = 0; n < 2 * kLaneStates; ++n) pairs[n] = 0.0f;
#pragma unroll
    for (int c = 0; c < kLaneChannels; ++c) {
      const float delta = d[c].x, delta_u = d[c].y, g = d[c].z;
      hB[c] = hA[c] = 0.0f;
#pragma unroll
      for (int n = 0; n < kLaneStates; ++n) {
        const float h = fmaf(C[n], g, q[c][n]);
        pairs[n] = fmaf(h, delta_u, pairs[n]);
        pairs[kLaneStates + n] = fmaf(g, after[c][n], pairs[kLaneStates + n]);
        hB[c] = fmaf(h, B[n], hB[c]);
        q[c][n] = decay[c][n] * h;
        const float carried = q[c][n] * before[c][n];
        hA[c] = fmaf(carried, a2[c][n], hA[c]);
        dA[c][n] = fmaf(carried, delta, dA[c][n]);
      }
    }
  }
};

// Sums over the four state lanes. y[t][c] of four steps: lane state_lane ends with step state_lane in y[0].
__device__ __forceinline__ void sum_states(float (&y)[kTile][kLaneChannels], int state_lane) {
  const bool upper = (state_lane & 2) != 0, odd = (state_lane & 1) != 0;
#pragma unroll
  for (int t = 0; t < 2; ++t) {
#pragma unroll
    for (int c = 0; c < kLaneChannels; ++c) {
      const float keep = upper ? y[t + 2][c] : y[t][c], send = upper ? y[t][c] : y[t + 2][c];
      y[t][c] = keep + __shfl_xor_sync(0xffffffffu, send, 2);
    }
  }
#pragma unroll
  for (int c = 0; c < kLaneChannels; ++c) {
    const float keep = odd ? y[1][c] : y[0][c], send = odd ? y[0][c] : y[1][c];
    y[0][c] = keep + __shfl_xor_sync(0xffffffffu, send, 1);
  }
}

// Sums dB and dC over the kSubLanes channel lanes of a chunk. A lane ends with 8 / kSubLanes values, of columns
// pair_column<kSubLanes>(lane) and on.
template <int kSubLanes>
__device__ __forceinline__ void sum_channels(float (&v)[2 * kLaneStates], int lane) {
  constexpr int kStages = kSubLanes == 8 ? 3 : kSubLanes == 4 ? 2 : 1;
#pragma unroll
  for (int stage = 0; stage < kStages; ++stage) {
    const int bit = (kSubLanes * 2) >> stage, half = 4 >> stage;
    const bool upper = (lane & bit) != 0;
#pragma unroll
    for (int i = 0; i < half; ++i) {
      const float keep = upper ? v[i + half] : v[i], send = upper ? v[i] : v[i + half];
      v[i] = keep + __shfl_xor_sync(0xffffffffu, send, bit);
    }
  }
}
template <int kSubLanes>
__device__ __forceinline__ int pair_column(int lane) {
  int column = (lane & (kSubLanes * 2)) != 0 ? kStates : 0;  // C behind B
  column += lane % 4 * kLaneStates;
  if (kSubLanes >= 4 && (lane & kSubLanes) != 0) column += 2;
  if (kSubLanes == 8 && (lane & 4) != 0) column += 1;
  return column;
}

}  // namespace pm::cuda::block
