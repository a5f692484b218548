// What the gradient scan over a chunk reads, writes and shares; see block_grad.cu. The passes are in block_grad_passes.cuh.
//
// Every warp works on its own channels: it loads their values, B and C of its chunks, and writes their results, in step with
// nobody else. Only dB and dC are added across warps, where chunks are not shared inside one: after the last tile.
#pragma once
#include "cuda/scan/block_grad.cuh"

namespace pm::cuda::block {

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

// Values of a tile that the lanes of a warp share: the lane of step t stores them, all lanes of its channels load them.
// One float4 per step and channel lane in each plane, so that 8 neighbouring lanes touch 128 bytes in a row.
template <int kChannels>
struct SharedValues {
  float4 plane[kChannels][kTile][kChannelLanes];  // of channel c: delta, delta * u, u, g

  __device__ __forceinline__ void put(int t, int k, const float2 (&d)[kChannels], const float (&u)[kChannels],
                                      const float (&g)[kChannels]) {
#pragma unroll
    for (int c = 0; c < kChannels; ++c) plane[c][t][k] = make_float4(d[c].x, d[c].y, u[c], g[c]);
  }
  __device__ __forceinline__ void put(int t, int k, const float2 (&d)[kChannels]) {
#pragma unroll
    for (int c = 0; c < kChannels; ++c) *reinterpret_cast<float2*>(&plane[c][t][k]) = d[c];
  }
  __device__ __forceinline__ void get(int t, int k, float2 (&d)[kChannels]) const {
#pragma unroll
    for (int c = 0; c < kChannels; ++c) d[c] = *reinterpret_cast<const float2*>(&plane[c][t][k]);
  }
  __device__ __forceinline__ void get(int t, int k, float2 (&d)[kChannels], float (&g)[kChannels]) const {
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      const float4 v = plane[c][t][k];
      d[c] = make_float2(v.x, v.y), g[c] = v.w;
    }
  }
  __device__ __forceinline__ void get(int t, int k, float2 (&d)[kChannels], float (&u)[kChannels],
                                      float (&g)[kChannels]) const {
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      const float4 v = plane[c][t][k];
      d[c] = make_float2(v.x, v.y), u[c] = v.z, g[c] = v.w;
    }
  }
};
template <>
struct SharedValues<2> {
  float4 plane[2][kTile][kChannelLanes];  // delta, delta * u of both channels; u of both, g of both

  __device__ __forceinline__ void put(int t, int k, const float2 (&d)[2], const float (&u)[2], const float (&g)[2]) {
    put(t, k, d);
    plane[1][t][k] = make_float4(u[0], u[1], g[0], g[1]);
  }
  __device__ __forceinline__ void put(int t, int k, const float2 (&d)[2]) {
    plane[0][t][k] = make_float4(d[0].x, d[0].y, d[1].x, d[1].y);
  }
  __device__ __forceinline__ void get(int t, int k, float2 (&d)[2]) const {
    const float4 v = plane[0][t][k];
    d[0] = make_float2(v.x, v.y), d[1] = make_float2(v.z, v.w);
  }
  __device__ __forceinline__ void get(int t, int k, float2 (&d)[2], float (&g)[2]) const {
    get(t, k, d);
    const float2 v = *reinterpret_cast<const float2*>(&plane[1][t][k].z);
    g[0] = v.x, g[1] = v.y;
  }
  __device__ __forceinline__ void get(int t, int k, float2 (&d)[2], float (&u)[2], float (&g)[2]) const {
    get(t, k, d);
    const float4 v = plane[1][t][k];
    u[0] = v.x, u[1] = v.y, g[0] = v.z, g[1] = v.w;
  }
};

// Shared memory of a block.
template <typename T, typename Shape>
struct GradMemory {
  static constexpr int kSubStride = kTile * kPairColumns + 4;
  // dB and dC of a tile, of the lower and of the upper four channel lanes. Neighbouring groups of 8 columns of the upper ones
  // change places (swapped), so that all lanes of a warp write to different banks.
  using TileSums = float[2][kTile][kPairColumns];
  float4 states[Shape::kWarps][kGradTiles][Shape::kChannels][kWarp];  // before tiles; then TileSums
  SharedValues<Shape::kChannels> values[Shape::kWarps];
  float pairs[Shape::kWarps][Shape::kWarpSubs * kSubStride];  // B, C of the tile
  SubTable table;
  GradChunkRows<T> chunks[kMaxSubs];

  static_assert(sizeof(states[0][0]) >= sizeof(TileSums));
  // They take the place of the tile's states, once these are back in registers.
  __device__ TileSums& sums(int warp, int tile) { return *reinterpret_cast<TileSums*>(states[warp][tile]); }
  __device__ static int swapped(int half, int column) { return column ^ (half * 8); }

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

// Where the values are that a lane loads and writes for its warp: its own channels, of step state_lane of every tile.
struct Place {
  int64_t at;          // of the first tile; in words, of the one that the first channel is in
  unsigned tiles;      // those that have the step, a bit each
  int channel, count;  // channels [channel, channel + count) exist

  __device__ Place(const Sequences& s, const SubTable& table, int state_lane, int first_channel, bool reverse,
                   bool words) {
    const Walk walk(s, table, blockIdx.x % s.groups, first_channel, reverse);
    at = walk.base + walk.at + state_lane * walk.step - (words ? first_channel % 2 : 0);
    const int first = (max(walk.first - state_lane, 0) + kTile - 1) / kTile;
    const int last = (max(walk.last - state_lane, 0) + kTile - 1) / kTile;
    tiles = (1u << last) - (1u << first);
    channel = walk.channel;
    count = walk.live() ? min(s.width - first_channel % s.width, s.d_inner - channel) : 0;
  }
  __device__ bool has(int tile) const { return (tiles >> tile & 1) != 0; }
  __device__ bool has(int tile, int c) const { return has(tile) && c < count; }
};

// The values of a lane's channels in a tensor; zeros where there are none. Two channels: both or none exist, and move at once.
template <typename T, int kChannels, bool kWords>
struct LaneValues {
  static_assert(kChannels == 2);
  Vector<T, 2> raw;

  __device__ __forceinline__ void load(const T* source, const Place& place, int tile, int64_t at) {
    raw = load_vector<T, 2>(place.has(tile), source + at);
  }
  __device__ __forceinline__ float operator[](int c) const { return raw[c]; }
  __device__ static __forceinline__ void store(const float (&v)[2], T* target, const Place& place, int tile,
                                               int64_t at) {
    if (place.has(tile)) *reinterpret_cast<Vector<T, 2>*>(target + at) = Vector<T, 2>::of(v);
  }
};
// Three channels, each for itself.
template <typename T, bool kWords>
struct LaneValues<T, 3, kWords> {
  T raw[3];

  __device__ __forceinline__ void load(const T* source, const Place& place, int tile, int64_t at) {
#pragma unroll
    for (int c = 0; c < 3; ++c) raw[c] = load_if(place.has(tile, c), source + at + c);
  }
  __device__ __forceinline__ float operator[](int c) const { return to_float(raw[c]); }
  __device__ static __forceinline__ void store(const float (&v)[3], T* target, const Place& place, int tile,
                                               int64_t at) {
#pragma unroll
    for (int c = 0; c < 3; ++c) {
      if (place.has(tile, c)) target[at + c] = from_float<T>(v[c]);
    }
  }
};
// Where all three or none exist, and the channels of a lane of even number begin at an even element, bf16 moves in words of
// two values.
//
//     lane, channels       even: 0 1 2   odd: 3 4 5
//     words it reads             01 23        23 45
//     words it writes            01 23        45
template <>
struct LaneValues<__nv_bfloat16, 3, true> {
  unsigned word[2];

  __device__ static bool odd() { return threadIdx.x % 2 != 0; }
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
  __device__ static __forceinline__ void store(const float (&v)[3], __nv_bfloat16* target, const Place& place, int tile,
                                               int64_t at) {
    __nv_bfloat162* words = reinterpret_cast<__nv_bfloat162*>(target + at);
    const float next = __shfl_down_sync(0xffffffffu, v[0], 1);
    const __nv_bfloat162 second = __floats2bfloat162_rn(odd() ? v[1] : v[2], odd() ? v[2] : next);
    const __nv_bfloat162 first = __floats2bfloat162_rn(v[0], v[1]);
    const bool has = place.has(tile);
    if (has) words[1] = second;
    if (has & !odd()) words[0] = first;
  }
};

// The next tile's B and C of a warp on their way from global to shared memory.
template <typename T, typename Shape>
struct PairLoader {
  using Raw = std::conditional_t<std::is_same_v<T, float>, float4, uint2>;
  using Memory = GradMemory<T, Shape>;
  Raw waiting[Shape::kWarpSubs];

  // token: of the lane's quarter of a warp; those behind a chunk read its last one.
  __device__ __forceinline__ void begin(const Sequences& s, const Memory& memory, int first_sub, int token) {
#pragma unroll
    for (int k = 0; k < Shape::kWarpSubs; ++k) {
      const GradChunkRows<T>& chunk = memory.chunks[min(first_sub + k, s.subs - 1)];
      const int row = min(token, max(chunk.len - 1, 0));
      waiting[k] =
          *reinterpret_cast<const Raw*>(chunk.proj + (row * s.proj_width + static_cast<int>(threadIdx.x) % 8 * 4));
    }
  }
  __device__ __forceinline__ void finish(Memory& memory) const {
#pragma unroll
    for (int k = 0; k < Shape::kWarpSubs; ++k) {
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
