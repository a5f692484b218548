// Sums in a fixed order: the same bits in every run. No atomics.
#pragma once
#include "cuda/core/launch.cuh"

namespace pm::cuda {

constexpr int kWarp = 32;

// Sum over the `width` lanes of an aligned group (a power of two); every lane gets it.
template <typename T>
__device__ __forceinline__ T group_sum(T value, int width) {
  for (int offset = width / 2; offset > 0; offset /= 2) value += __shfl_xor_sync(0xffffffffu, value, offset);
  return value;
}

template <typename T>
__device__ __forceinline__ T warp_sum(T value) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) value += __shfl_xor_sync(0xffffffffu, value, offset);
  return value;
}

// Sum over a block of kThreads threads; every thread gets it. `shared` holds kThreads / 32 values.
// Safe to call again with the same `shared`.
template <int kThreads, typename T>
__device__ __forceinline__ T block_sum(T value, T* shared) {
  constexpr int kWarps = kThreads / kWarp;
  value = warp_sum(value);
  __syncthreads();
  if (threadIdx.x % kWarp == 0) shared[threadIdx.x / kWarp] = value;
  __syncthreads();
  T total = shared[0];
#pragma unroll
  for (int warp = 1; warp < kWarps; ++warp) total += shared[warp];
  return total;
}

// out[column] = sum over rows of partials[row, column], added in double in an order that the shape alone decides (reduce.cu).
// partials: (rows, columns) float32, contiguous. The second stage of every weight gradient: first-stage kernels write one row
// per block. rows = 0 gives zeros. One launch.
void column_sum(const float* partials, int64_t rows, int64_t columns, float* out, Stream stream);

// The same where neighbouring columns belong to several outputs, one after the other; unused entries have no columns.
struct ColumnRanges {
  float* out[4];
  int64_t columns[4];
};
void column_sum(const float* partials, int64_t rows, const ColumnRanges& out, Stream stream);

}  // namespace pm::cuda
