// Rows on their way from the registers of block_prepare.cu to memory. A thread has all columns of a row, memory wants
// neighbouring threads at neighbouring addresses: so the rows of a tile are laid out in shared memory, the stage, exactly as
// in the tensor, and copied from there in pieces of 16 bytes.
//
//   memory   . . . | 0 1 2 3 4 5 6 7 | 8 . . .      bars: multiples of 16 bytes
//   tile                 a b c d e     f g          begins at any element
//   stage          | - - a b c d e . | f g - -      the same address modulo 16
#pragma once
#include <type_traits>

#include "cuda/core/launch.cuh"

namespace pm::cuda::block {

// Columns that a thread makes and stages at once: a row is a multiple of them, so they are aligned in every row.
constexpr int group_of(int columns) { return columns % 4 == 0 ? 4 : columns % 2 == 0 ? 2 : 1; }

// Barrier of one half.
template <int kLanes>
__device__ __forceinline__ void half_barrier(int half) {
  if (half == 0) {
    asm volatile("bar.sync 1, %0;" ::"n"(kLanes) : "memory");
  } else {
    asm volatile("bar.sync 2, %0;" ::"n"(kLanes) : "memory");
  }
}

template <int kN>
__device__ __forceinline__ void load_group(const float* source, float (&v)[kN]) {
  if constexpr (kN == 4) {
    const float4 w = *reinterpret_cast<const float4*>(source);
    v[0] = w.x, v[1] = w.y, v[2] = w.z, v[3] = w.w;
  } else {
    const float2 w = *reinterpret_cast<const float2*>(source);
    v[0] = w.x, v[1] = w.y;
  }
}

// Stores v as neighbours; target is aligned to all of them.
template <int kN>
__device__ __forceinline__ void put(float* target, const float (&v)[kN]) {
  if constexpr (kN == 4) {
    *reinterpret_cast<float4*>(target) = make_float4(v[0], v[1], v[2], v[3]);
  } else if constexpr (kN == 2) {
    *reinterpret_cast<float2*>(target) = make_float2(v[0], v[1]);
  } else {
    target[0] = v[0];
  }
}
template <int kN>
__device__ __forceinline__ void put(__nv_bfloat16* target, const float (&v)[kN]) {
  if constexpr (kN == 1) {
    target[0] = __float2bfloat16_rn(v[0]);
  } else {
    union {
      __nv_bfloat162 pairs[kN / 2];
      std::conditional_t<kN == 4, uint2, unsigned> all;
    } packed;
#pragma unroll
    for (int k = 0; k < kN / 2; ++k) packed.pairs[k] = __floats2bfloat162_rn(v[2 * k], v[2 * k + 1]);
    *reinterpret_cast<decltype(packed.all)*>(target) = packed.all;
  }
}

// Where the first element of `target` is staged: the same address modulo 16.
template <typename T>
__device__ __forceinline__ T* staged(unsigned char* stage, const T* target) {
  return reinterpret_cast<T*>(stage + (reinterpret_cast<uintptr_t>(target) & 15));
}

// `count` elements from the stage to `target`, by the threads of a half, in pieces of 16 bytes; the first and the last
// piece may belong in part to neighbouring tiles. A barrier comes before.
template <typename T, int kLanes>
__device__ __forceinline__ void copy_out(unsigned char* stage, T* target, int count, int lane) {
  constexpr int kPiece = 16 / sizeof(T);
  const int shift = static_cast<int>((reinterpret_cast<uintptr_t>(target) & 15) / sizeof(T));
  const T* source = reinterpret_cast<const T*>(stage);
#pragma unroll 2
  for (int at = lane * kPiece; at < shift + count; at += kLanes * kPiece) {
    const int first = at - shift;
    if (first >= 0 && first + kPiece <= count) {
      *reinterpret_cast<uint4*>(target + first) = *reinterpret_cast<const uint4*>(source + at);
    } else {
      for (int k = max(0, -first); k < kPiece && first + k < count; ++k) target[first + k] = source[at + k];
    }
  }
}

}  // namespace pm::cuda::block
