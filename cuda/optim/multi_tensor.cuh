// Many tensors in one launch: what a kernel needs to know about each travels by value, as one kernel parameter, so nothing is
// copied to the device first and a captured launch keeps it. A network of 400 tensors is one launch.
#pragma once
#include <algorithm>

#include "cuda/core/launch.cuh"

namespace pm::cuda {

#if CUDART_VERSION >= 12010
constexpr size_t kParameterBytes = 32764;  // of one launch, since CUDA 12.1
#else
constexpr size_t kParameterBytes = 4096;
#endif
constexpr size_t kOtherParameterBytes = 256;  // room for what a kernel takes besides the batch
constexpr int64_t kTensorSpan = 16 * kBlock;  // elements of one block's turn
constexpr int64_t kMaxTensorBlocks = 2048;    // blocks of one tensor

// Up to kTensors tensors. `Item` has `int64_t n`, its elements, never 0.
template <typename Item>
struct TensorBatch {
  static constexpr int kTensors = std::min<int>(
      512, static_cast<int>((kParameterBytes - kOtherParameterBytes - 16) / (sizeof(Item) + sizeof(int))));
  Item items[kTensors];
  int first_block[kTensors + 1];  // of each tensor; the last: blocks in all
  int count = 0;

  int blocks() const { return first_block[count]; }
};

// Calls fn(batch) for groups of tensors, in order. make(i) gives the Item of tensor i of `count`.
template <typename Item, typename Make, typename Fn>
void for_batches(size_t count, Make&& make, Fn&& fn) {
  static_assert(sizeof(TensorBatch<Item>) + kOtherParameterBytes <= kParameterBytes);
  TensorBatch<Item> batch;
  batch.first_block[0] = 0;
  for (size_t i = 0; i < count; ++i) {
    const Item item = make(i);
    batch.items[batch.count] = item;
    const int blocks = static_cast<int>(std::min(ceil_div(item.n, kTensorSpan), kMaxTensorBlocks));
    batch.first_block[batch.count + 1] = batch.first_block[batch.count] + blocks;
    ++batch.count;
    if (batch.count == TensorBatch<Item>::kTensors || i + 1 == count) {
      fn(batch);
      batch.count = 0;
    }
  }
}

// The part of a batch that a block works on: elements begin, begin + stride, .. of one tensor, for each thread.
struct TensorTurn {
  int tensor;
  int64_t begin, stride;
};

template <typename Item>
__device__ __forceinline__ TensorTurn turn_of_block(const TensorBatch<Item>& batch) {
  const int block = static_cast<int>(blockIdx.x);
  int low = 0, high = batch.count;  // first_block[low] <= block < first_block[high]
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (batch.first_block[middle] <= block ? low : high) = middle;
  }
  const int blocks = batch.first_block[low + 1] - batch.first_block[low];
  return {low, int64_t{block - batch.first_block[low]} * kBlock + threadIdx.x, int64_t{blocks} * kBlock};
}

}  // namespace pm::cuda
