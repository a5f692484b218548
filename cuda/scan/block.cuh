// The parts that the kernels of the fused Mamba block share: how sequences are cut into chunks, where a thread stands, and
// the tiles of B and C in shared memory. The passes are described in mamba_block.cu, the maths in
// engine/ops/scan/mamba_block.h.
//
// Chunks and blocks. Every sequence is cut into chunks of chunk_len tokens, the same chunks for both directions. A thread
// walks one channel of one chunk in one direction (two of block_scan.cu share two); kDirectionThreads threads side by side hold
//
//     d_inner >= 96   96 neighbouring channels of one chunk        (`groups` blocks share the channels of a chunk)
//     d_inner  < 96   every channel of `subs` chunks, e.g. 16 chunks of 6 channels
//
// so that no thread is idle at the widths of the published models (6, 12, .. 1536). `lane` = sub * width + channel.
//
// Steps and tokens. Step i of a chunk is token i, or token chunk_len - 1 - i in the reverse direction. A step whose token
// lies behind the sequence has delta = 0 and u = 0: it decays by exactly 1, adds nothing, and is never written.
#pragma once
#include <type_traits>

#include "cuda/scan/block.h"
#include "cuda/scan/selective_scan.cuh"

namespace pm::cuda::block {

constexpr int kStates = 16;
constexpr int kDirectionThreads = 96;
constexpr int kTile = 4;      // steps between two barriers
constexpr int kMaxSubs = 16;  // chunks side by side: d_inner 6

using scan::exp2_approx;
using scan::kLn2;
using scan::kLog2e;
using scan::sigmoid;

__device__ __forceinline__ float silu_grad(float v) {
  const float s = sigmoid(v);
  return s * (1.0f + v * (1.0f - s));
}

// kCount neighbouring values of a row as they lie in memory, 2 to 16 bytes that move at once.
template <typename T, int kCount>
struct alignas(sizeof(T) * kCount) Vector {
  using Word = std::conditional_t<sizeof(T) * kCount % 4 == 0, unsigned, unsigned short>;
  Word word[sizeof(T) * kCount / sizeof(Word)];

  __device__ __forceinline__ float operator[](int i) const {
    if constexpr (sizeof(T) == 4) return __uint_as_float(word[i]);
    if constexpr (sizeof(Word) == 2) return __uint_as_float(unsigned{word[i]} << 16);
    return __uint_as_float(i % 2 == 0 ? word[i / 2] << 16 : word[i / 2] & 0xffff0000u);
  }
  __device__ static __forceinline__ Vector of(const float (&v)[kCount]) {
    Vector result;
#pragma unroll
    for (int i = 0; i < static_cast<int>(sizeof(result.word) / sizeof(Word)); ++i) {
      if constexpr (sizeof(T) == 4) {
        result.word[i] = __float_as_uint(v[i]);
      } else if constexpr (sizeof(Word) == 2) {
        result.word[i] = __bfloat16_as_ushort(__float2bfloat16_rn(v[i]));
      } else {
        const __nv_bfloat162 pair = __floats2bfloat162_rn(v[2 * i], v[2 * i + 1]);
        result.word[i] = *reinterpret_cast<const unsigned*>(&pair);
      }
    }
    return result;
  }
};
template <typename T, int kCount>
__device__ __forceinline__ Vector<T, kCount> load_vector(bool exists, const T* place) {
  return exists ? *reinterpret_cast<const Vector<T, kCount>*>(place) : Vector<T, kCount>{};
}

// Chunk `sub` of a block: its first row, and its tokens (0 where there is no such chunk). Call from every thread.
struct SubTable {
  int64_t row[kMaxSubs];
  int len[kMaxSubs];

  __device__ void fill(const Sequences& s, int64_t first_pair) {
    if (static_cast<int>(threadIdx.x) < s.subs) {
      const int64_t wanted = first_pair + threadIdx.x, pair = min(wanted, s.pairs() - 1);
      const int64_t begin = pair % s.chunks * s.chunk_len;
      row[threadIdx.x] = pair / s.chunks * s.seq_len + begin;
      len[threadIdx.x] = wanted < s.pairs() ? static_cast<int>(min(int64_t{s.chunk_len}, s.seq_len - begin)) : 0;
    }
    __syncthreads();
  }
};

// One channel of one chunk, walked in one direction. `at` is the element of step 0; step i is at + i * step, all relative to
// `base`, the first element of the block's first chunk: 32 bits suffice inside a block.
struct Walk {
  int64_t base;
  int at, step;
  int first, last;  // steps [first, last) exist
  int channel, sub;

  __device__ Walk(const Sequences& s, const SubTable& table, int group, int lane, bool reverse) {
    sub = min(lane / s.width, s.subs - 1);
    channel = group * s.width + lane % s.width;
    const bool live = lane / s.width < s.subs && channel < s.d_inner;
    const int len = live ? table.len[sub] : 0;
    first = reverse ? s.chunk_len - len : 0;
    last = reverse ? s.chunk_len : len;
    base = table.row[0] * s.d_inner;
    at = (static_cast<int>(table.row[sub] - table.row[0]) + (reverse ? s.chunk_len - 1 : 0)) * s.d_inner + channel;
    step = reverse ? -s.d_inner : s.d_inner;
    channel = min(channel, s.d_inner - 1);
  }
  __device__ bool live() const { return last > first; }
  __device__ bool has(int i) const { return i >= first && i < last; }

  // Steps i to i + kTile - 1; zeros where there is no token. source: from `base` on.
  template <typename T>
  __device__ void load(const T* source, int i, T (&v)[kTile]) const {
    const int first_at = at + i * step;
#pragma unroll
    for (int k = 0; k < kTile; ++k) v[k] = load_if(has(i + k), source + (first_at + k * step));
  }
};

// The same, and where B and C of each chunk lie, for each direction: the elements of proj, from row[0] on, of step 0 and of the
// last token.
struct PairTable : SubTable {
  int2 bounds[2][kMaxSubs];

  __device__ void fill(const Sequences& s, int64_t first_pair) {
    if (static_cast<int>(threadIdx.x) < s.subs) {
      const int64_t wanted = first_pair + threadIdx.x, pair = min(wanted, s.pairs() - 1);
      const auto row_of = [&](int64_t p) { return p / s.chunks * s.seq_len + p % s.chunks * s.chunk_len; };
      const int from = static_cast<int>(row_of(pair) - row_of(first_pair));
      const int tokens = static_cast<int>(min(int64_t{s.chunk_len}, s.seq_len - pair % s.chunks * s.chunk_len));
      const int end = (from + (wanted < s.pairs() ? tokens : 1) - 1) * s.proj_width;
      bounds[0][threadIdx.x] = make_int2(from * s.proj_width, end);
      bounds[1][threadIdx.x] = make_int2((from + s.chunk_len - 1) * s.proj_width, end);
    }
    SubTable::fill(s, first_pair);
  }
};

// Shared memory by 32-bit addresses in registers.
__device__ __forceinline__ float4 load_shared(unsigned at) {
  float4 v;
  asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];" : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w) : "r"(at));
  return v;
}
__device__ __forceinline__ void store_shared(unsigned at, const float4& v) {
  asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(at), "f"(v.x), "f"(v.y), "f"(v.z), "f"(v.w) : "memory");
}
// A row of B (and C) there, by quads.
struct PairRow {
  unsigned at;
  __device__ __forceinline__ float4 operator[](int quad) const { return load_shared(at + 16 * quad); }
};

// Barrier of the threads of one direction.
__device__ __forceinline__ void direction_barrier(int direction) {
  if (direction == 0) {  // constant numbers: a barrier named by a register reserves all sixteen
    asm volatile("bar.sync 1, %0;" ::"n"(kDirectionThreads) : "memory");
  } else {
    asm volatile("bar.sync 2, %0;" ::"n"(kDirectionThreads) : "memory");
  }
}

// B (and C) of kTile steps of every chunk of a direction, double-buffered in shared memory: row `step` of chunk `sub` at
// tile(buffer) + sub * kSubStride + step * kColumns. The stride puts neighbouring chunks into different banks. A thread stages
// the same four columns of the same step of every kSpread-th chunk, so that a piece costs a bound and an address. Steps behind
// a chunk read its last row: finite wherever the chunk is, and without weight, since their delta and u are 0.
// float32 goes straight to shared memory (cp.async); bf16 waits in registers and is widened on the way.
//   begin(buffer) starts the loads of the next tile, from the first one on; finish(buffer) leaves them in shared memory; then
//   synchronise().
//   kPieces: of 16 bytes that a thread stages; kOwnPieces: every warp stages for itself the one chunk of its block, and waits
//   for nobody.
constexpr int kOwnPieces = 0;
template <typename T, int kColumns, int kPieces>
struct PairStage {
  static constexpr int kQuads = kColumns / 4;
  static constexpr bool kOwn = kPieces == kOwnPieces;
  static constexpr int kThreads = kOwn ? 32 : kDirectionThreads, kLoads = kOwn ? 1 : kPieces;
  static constexpr int kSpread = kThreads / (kTile * kQuads);
  static constexpr int kSubStride = kTile * kColumns + 4;
  static constexpr bool kAsync = std::is_same_v<T, float>;
  static_assert(kThreads % (kTile * kQuads) == 0);
  const T* source;          // the thread's columns in the first row of the block
  const int2* chunk;        // its first chunk in the table
  unsigned shared, target;  // addresses of the first buffer and of the thread's first piece there
  int left;                 // chunks from its first one on
  int subs;
  int offset, tile_offset;  // from step 0 of a chunk to the step that comes next; from tile to tile
  uint2 waiting[kAsync ? 1 : kLoads];
  int2 own;  // bounds of the only chunk

  // thread: of the direction, whose memory this is.
  __device__ PairStage(const Sequences& s, const PairTable& table, const T* proj, float* memory, int thread,
                       bool reverse)
      : subs(s.subs) {
    // Through a shuffle, so that the compiler keeps it in a register instead of making it anew in every tile.
    shared = __shfl_sync(0xffffffffu, static_cast<unsigned>(__cvta_generic_to_shared(memory)), 0);
    if constexpr (kOwn) shared += thread / 32 * 2 * buffer_bytes();
    const int lane = thread % kThreads;
    const int quad = lane % kQuads, step = lane / kQuads % kTile, sub = lane / (kQuads * kTile);
    source = proj + table.row[0] * s.proj_width + quad * 4;
    chunk = table.bounds[reverse ? 1 : 0] + sub;
    target = shared + (sub * kSubStride + step * kColumns + quad * 4) * 4;
    left = s.subs - sub;
    own = table.bounds[reverse ? 1 : 0][0];
    const int direction = reverse ? -s.proj_width : s.proj_width;
    offset = step * direction;
    tile_offset = kTile * direction;
  }

  __device__ __forceinline__ void begin(int buffer) {
#pragma unroll
    for (int k = 0; k < kLoads; ++k) {
      if (!has_piece(k)) continue;
      const int2 bounds = kOwn ? own : chunk[k * kSpread];
      const T* from = source + static_cast<unsigned>(min(bounds.x + offset, bounds.y));
      if constexpr (kAsync) {
        asm volatile("cp.async.ca.shared.global [%0], [%1], 16;" ::"r"(target_of(buffer, k)), "l"(from) : "memory");
      } else {
        waiting[k] = *reinterpret_cast<const uint2*>(from);
      }
    }
    offset += tile_offset;
  }
  __device__ __forceinline__ void finish(int buffer) {
    if constexpr (kAsync) {
      asm volatile("cp.async.wait_all;" ::: "memory");
    } else {
#pragma unroll
      for (int k = 0; k < kLoads; ++k) {
        if (!has_piece(k)) continue;
        const uint2 v = waiting[k];
        store_shared(target_of(buffer, k), make_float4(__uint_as_float(v.x << 16), __uint_as_float(v.x & 0xffff0000u),
                                                       __uint_as_float(v.y << 16), __uint_as_float(v.y & 0xffff0000u)));
      }
    }
  }
  // What finish() left is there for those who read it.
  __device__ __forceinline__ void synchronise(int direction) const {
    if constexpr (kOwn) {
      __syncwarp();
    } else {
      direction_barrier(direction);
    }
  }
  __device__ __forceinline__ PairRow row(int buffer, int sub, int step) const {
    return {shared + buffer * buffer_bytes() + (sub * kSubStride + step * kColumns) * 4};
  }

 private:
  __device__ __forceinline__ unsigned buffer_bytes() const { return (kOwn ? 1 : subs) * kSubStride * 4; }
  __device__ __forceinline__ bool has_piece(int k) const {
    return (kOwn && kTile * kQuads == kThreads) || k * kSpread < left;
  }
  __device__ __forceinline__ unsigned target_of(int buffer, int k) const {
    return target + buffer * buffer_bytes() + k * (kSpread * kSubStride * 4);
  }
};

// Floats of shared memory of a PairStage.
constexpr int64_t stage_floats(int subs, int columns) { return int64_t{2} * subs * (kTile * columns + 4); }

// A[channel, :] * log2(e); zeros for a channel that is not there.
__device__ __forceinline__ void load_decay(const float* __restrict__ A_log, const Walk& walk, float (&a2)[kStates]) {
#pragma unroll
  for (int n = 0; n < kStates; ++n) a2[n] = walk.live() ? -expf(A_log[walk.channel * kStates + n]) * kLog2e : 0.0f;
}

// Calls fn with the number of 16-byte pieces that a thread stages for `columns` columns.
template <typename Fn>
void dispatch_pieces(int subs, int columns, Fn&& fn) {
  const int64_t pieces = ceil_div(int64_t{subs} * kTile * (columns / 4), kDirectionThreads);
  if (pieces <= 1) return fn.template operator()<1>();
  if (pieces <= 3) return fn.template operator()<3>();
  return fn.template operator()<6>();
}

}  // namespace pm::cuda::block
