// Rows of few columns on their way through the shared memory of a warp: between global memory in 16-byte words, neighbouring
// lanes on neighbouring words, and a lane that works on whole rows of its own.
#pragma once
#include "cuda/core/launch.cuh"
#include "cuda/core/pack.cuh"
#include "cuda/core/reduce.cuh"

namespace pm::cuda::small {

// A tile of kWarp units of kRows rows, (kWarp * kRows, kColumns) in global memory. Rows of a unit follow one another here too;
// between units lies a gap where a unit has an even number of words: lanes that read their own units word by word then meet no
// bank conflicts.
template <typename T, int kColumns, int kRows>
struct LaneRows {
  static constexpr int kElements = kColumns * kRows;  // of a unit
  static constexpr int kWordElements = 16 / static_cast<int>(sizeof(T));
  static constexpr int kWords = kElements / kWordElements;
  static constexpr int kStride = kWords | 1;
  static constexpr int kTileRows = kWarp * kRows;
  static_assert(kElements % kWordElements == 0);
  using Word = Pack<T, kWordElements>;

  uint4 words[kWarp * kStride];

  static __device__ __forceinline__ int lane() { return static_cast<int>(threadIdx.x) % kWarp; }
  __device__ __forceinline__ uint4* unit(int u) { return words + u * kStride; }
  __device__ __forceinline__ T& element(int i) { return reinterpret_cast<T*>(unit(i / kElements))[i % kElements]; }

  // A whole tile at a multiple of 16 bytes: all loads are in flight before the first word is put down.
  static __device__ __forceinline__ void fetch(const T* source, uint4 (&held)[kWords]) {
#pragma unroll
    for (int i = 0; i < kWords; ++i) held[i] = reinterpret_cast<const uint4*>(source)[i * kWarp + lane()];
  }
  __device__ __forceinline__ void put(const uint4 (&held)[kWords]) {
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
      const int word = i * kWarp + lane();
      words[word / kWords * kStride + word % kWords] = held[i];
    }
  }
  // The first n_rows rows from anywhere; zeros beyond.
  __device__ __forceinline__ void copy_in(const T* source, int n_rows) {
#pragma unroll 4
    for (int i = lane(); i < kWarp * kElements; i += kWarp) element(i) = load_if(i < n_rows * kColumns, source + i);
  }
  __device__ __forceinline__ void copy_out(T* target, int n_rows, bool whole_words) {
    if (whole_words) {
#pragma unroll
      for (int i = 0; i < kWords; ++i) {
        const int word = i * kWarp + lane();
        reinterpret_cast<uint4*>(target)[word] = words[word / kWords * kStride + word % kWords];
      }
      return;
    }
#pragma unroll 4
    for (int i = lane(); i < n_rows * kColumns; i += kWarp) target[i] = element(i);
  }

  // values[row][first + c] = columns [column, column + kCount) of the rows of unit u
  template <int kCount, int kWidth>
  __device__ __forceinline__ void read(int u, int column, float (&values)[kRows][kWidth], int first) {
    if constexpr (kCount == kColumns) {
#pragma unroll
      for (int w = 0; w < kWords; ++w) {
        const Word word = reinterpret_cast<const Word*>(unit(u))[w];
#pragma unroll
        for (int i = 0; i < kWordElements; ++i) {
          const int at = w * kWordElements + i;
          values[at / kColumns][first + at % kColumns] = to_float(word.values[i]);
        }
      }
    } else {
      constexpr int kPair = kCount % 4 == 0 && sizeof(T) == 2 ? 4 : 2;  // elements of a load: 4 or 8 bytes
      static_assert(kCount % kPair == 0 && kColumns % kPair == 0);
      using Piece = Pack<T, kPair>;
#pragma unroll
      for (int row = 0; row < kRows; ++row) {
        const T* source = reinterpret_cast<const T*>(unit(u)) + row * kColumns + column;
#pragma unroll
        for (int c = 0; c < kCount; c += kPair) {
          const Piece piece = *reinterpret_cast<const Piece*>(source + c);
#pragma unroll
          for (int i = 0; i < kPair; ++i) values[row][first + c + i] = to_float(piece.values[i]);
        }
      }
    }
  }
};

// Rows of a unit: units of 48 and 96 bytes, which is 144 bytes in flight for each lane; twice that at 48 columns.
template <typename T, int kWidest>
constexpr int kUnitRows = (kWidest == 48 ? 192 : 96) / (kWidest * static_cast<int>(sizeof(T)));

inline __device__ bool at_word(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

}  // namespace pm::cuda::small
