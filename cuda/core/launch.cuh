// Launch sizes, element types and conversions shared by all kernels.
#pragma once
#include <cuda_bf16.h>

#include <algorithm>
#include <cstdint>
#include <utility>

#include "cuda/core/check.h"
#include "cuda/core/stream.h"
#include "engine/core/dtype.h"
#include "engine/core/error.h"

namespace pm::cuda {

constexpr int kBlock = 256;             // threads of a plain elementwise block
constexpr int64_t kMaxGrid = 132 * 32;  // blocks of a grid-stride launch: 32 per multiprocessor of the reference GPU.
                                        // A constant, so that the order of every sum is the same on every GPU.

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Blocks of a grid-stride loop over n elements, at least 1.
inline unsigned grid_for(int64_t n, int block = kBlock) {
  return static_cast<unsigned>(std::clamp<int64_t>(ceil_div(n, block), 1, kMaxGrid));
}

__device__ __forceinline__ float to_float(float v) { return v; }
__device__ __forceinline__ float to_float(__nv_bfloat16 v) { return __bfloat162float(v); }
template <typename T>
__device__ __forceinline__ T from_float(float v);
template <>
__device__ __forceinline__ float from_float<float>(float v) {
  return v;
}
template <>
__device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float v) {
  return __float2bfloat16_rn(v);
}

// A value as it would come back from memory.
template <typename T>
__device__ __forceinline__ float rounded(float v) {
  return to_float(from_float<T>(v));
}

// A value in its storage type, zero where there is none. Converting is left to the first use: a conversion next to its load
// waits for it, and every load after it waits too.
template <typename T>
__device__ __forceinline__ T load_if(bool exists, const T* place) {
  return exists ? *place : from_float<T>(0.0f);
}

// dispatch_float(dtype, [&]<typename T>() { ... }); T is float or __nv_bfloat16.
template <typename Fn>
void dispatch_float(DType dtype, Fn&& fn) {
  switch (dtype) {
    case DType::f32:
      return std::forward<Fn>(fn).template operator()<float>();
    case DType::bf16:
      return std::forward<Fn>(fn).template operator()<__nv_bfloat16>();
    default:
      throw DTypeError(std::string("CUDA kernels take f32 or bf16, got ") + to_string(dtype));
  }
}

}  // namespace pm::cuda
