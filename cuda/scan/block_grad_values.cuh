// What the gradient scan over a chunk reads, writes and shares; see block_grad.cu. The passes are in block_grad_passes.cuh.
//
// Every warp works on its own 24 channels: it loads their values, B and C of its chunks, and writes their results, in step
// with nobody else. Only dB and dC, where several warps share a chunk, are added across warps, one barrier per tile.
#pragma once
#include "cuda/scan/block_grad.cuh"

namespace pm::cuda::block {

constexpr int kWarps = kGradThreads / kWarp;
constexpr int kWarpChannels = kDirectionThreads / kWarps;  // 24
constexpr int kPairColumns = 2 * kStates;

template <typename T>
struct GradInputs {
  const T *u, *delta, *proj, *z, *dy;
  const float *A_log, *D_skip, *states, *adjoints;
  float share;
};
template <typename T>
struct GradOutputs {
  T *y, *dz, *du, *ddelta;
  float *pairs, *parameters;
};

// A chunk of the block.
template <typename T>
struct GradChunkRows {
  const T* proj;    // of its first token
  float* pairs;     // the same
  int64_t summary;  // its first channel among the states and adjoints of all chunks
  int len;          // tokens
};

// Shared memory of a block.
template <typename T, int kSubLanes>
struct GradMemory {
  static constexpr int kSubsPerWarp = 8 / kSubLanes;
  static constexpr int kSubStride = kTile * kPairColumns + 4;
  static constexpr int kValueStride = kWarpChannels + 2;  // the lanes of three steps and more write to different banks
  static constexpr bool kShared = kSubLanes == 8;         // a whole warp on one chunk: dB, dC through shared memory
  float4 states[(kGradTiles - 1) * kLaneChannels][kGradThreads];  // before tiles 1 to 15
  float4 values[kWarps][kTile * kValueStride];                    // delta, delta * u, in pass B u and g
  float pairs[kWarps][kSubsPerWarp * kSubStride];                 // B, C of the tile
  float lanes[kShared ? kWarps : 1][2][8][kPairColumns];          // dB, dC of two steps and 8 channel lanes
  float warps[kShared ? 2 : 1][kWarps][kTile][kPairColumns];      // dB, dC of the warps, two tiles
  SubTable table;
  GradChunkRows<T> chunks[kMaxSubs];

  // Call from every thread.
  __device__ void fill(const Sequences& s, const GradInputs<T>& in, const GradOutputs<T>& out) {
    const int64_t first_pair = blockIdx.x / s.groups * int64_t{s.subs}, group = blockIdx.x % s.groups;
    table.fill(s, first_pair);
    const int sub = static_cast<int>(threadIdx.x);
    if (sub < s.subs) {
      chunks[sub] = {in.proj + table.row[sub] * s.proj_width,
                     out.pairs + (group * s.batch * s.seq_len + table.row[sub]) * kPairColumns,
                     (first_pair + sub) * s.d_inner, table.len[sub]};
    }
    __syncthreads();
  }
};

// Where the values are that a lane loads and writes for its warp: its own three channels, of step state_lane of every tile.
struct Place {
  int64_t at;          // of the first tile; in words, of the one that the first channel is in
  int first, last;     // first steps [first, last) of the tiles that have them
  int channel, count;  // channels [channel, channel + count) exist

  __device__ Place(const Sequences& s, const SubTable& table, const GradLane& lane, bool reverse, bool words) {
    const Walk walk(s, table, blockIdx.x % s.groups, lane.first_channel, reverse);
    at = walk.base + walk.at + lane.state_lane * walk.step - (words ? lane.first_channel % 2 : 0);
    first = walk.first - lane.state_lane;
    last = walk.last - lane.state_lane;
    channel = walk.channel;
    count = walk.live() ? min(s.width - lane.first_channel % s.width, s.d_inner - channel) : 0;
  }
  __device__ bool has(int tile) const { return tile * kTile >= first && tile * kTile < last; }
  __device__ bool has(int tile, int c) const { return has(tile) && c < count; }
};

// Three neighbouring values of a tensor; zeros where there are none. kWords: where all three or none exist, and the channels
// of a lane of even number begin at an even element, bf16 moves in words of two values.
//
//     lane, channels       even: 0 1 2   odd: 3 4 5
//     words it reads             01 23        23 45
//     words it writes            01 23        45
template <typename T, bool kWords>
struct Three {
  T raw[kLaneChannels];

  __device__ __forceinline__ void load(const T* source, const Place& place, int tile, int64_t at) {
#pragma unroll
    for (int c = 0; c < kLaneChannels; ++c) raw[c] = load_if(place.has(tile, c), source + at + c);
  }
  __device__ __forceinline__ float operator[](int c) const { return to_float(raw[c]); }
  __device__ static __forceinline__ void store(const float (&v)[kLaneChannels], T* target, const Place& place, int tile,
                                               int64_t at) {
#pragma unroll
    for (int c = 0; c < kLaneChannels; ++c) {
      if (place.has(tile, c)) target[at + c] = from_float<T>(v[c]);
    }
  }
};
template <>
struct Three<__nv_bfloat16, true> {
  unsigned word[2];

  __device__ static bool odd() { return (threadIdx.x & kLaneStates) != 0; }
  __device__ __forceinline__ void load(const __nv_bfloat16* source, const Place& place, int tile, int64_t at) {
    const unsigned* words = reinterpret_cast<const unsigned*>(source + at);
    const bool has = place.has(tile);
    word[0] = has ? words[0] : 0u;
    word[1] = has ? words[1] : 0u;
  }
  __device__ __forceinline__ float operator[](int c) const {
    if (c == 1) return __uint_as_float(__byte_perm(word[0], word[1], odd() ? 0x5432 : 0x3210) & 0xffff0000u);
    return __uint_as_float(__byte_perm(word[c / 2], 0, odd() ? 0x3244 : 0x1044));
  }
  // Call from every lane: an even one writes the first channel of the next.
  __device__ static __forceinline__ void store(const float (&v)[kLaneChannels], __nv_bfloat16* target,
                                               const Place& place, int tile, int64_t at) {
    __nv_bfloat162* words = reinterpret_cast<__nv_bfloat162*>(target + at);
    const float next = __shfl_down_sync(0xffffffffu, v[0], kLaneStates);
    const __nv_bfloat162 second = __floats2bfloat162_rn(odd() ? v[1] : v[2], odd() ? v[2] : next);
    const __nv_bfloat162 first = __floats2bfloat162_rn(v[0], v[1]);
    const bool has = place.has(tile);
    if (has) words[1] = second;
    if (has & !odd()) words[0] = first;
  }
};

// The next tile's B and C of a warp on their way from global to shared memory.
template <typename T, int kSubLanes>
struct PairLoader {
  using Raw = std::conditional_t<std::is_same_v<T, float>, float4, uint2>;
  using Memory = GradMemory<T, kSubLanes>;
  Raw waiting[Memory::kSubsPerWarp];

  // token: of the lane's quarter of a warp; those behind a chunk read its last one.
  __device__ __forceinline__ void begin(const Sequences& s, const Memory& memory, int first_sub, int token) {
#pragma unroll
    for (int k = 0; k < Memory::kSubsPerWarp; ++k) {
      const GradChunkRows<T>& chunk = memory.chunks[min(first_sub + k, s.subs - 1)];
      const int row = min(token, max(chunk.len - 1, 0));
      waiting[k] =
          *reinterpret_cast<const Raw*>(chunk.proj + (row * s.proj_width + static_cast<int>(threadIdx.x) % 8 * 4));
    }
  }
  __device__ __forceinline__ void finish(Memory& memory) const {
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

}  // namespace pm::cuda::block
