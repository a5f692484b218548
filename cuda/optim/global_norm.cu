// norm = scale * sqrt(sum of squares over many tensors); see engine/ops/optim/global_norm.h
//   squares_kernel : all tensors of a batch (multi_tensor.cuh) in one launch; a block sums its turn in double and writes one
//                    partial
//   finish_kernel  : one block adds all partials, threads in a fixed stride, and takes the root
// launch  : kBlock threads; a model of 6.6e6 parameters in 412 tensors: about 2,000 blocks in one launch, and one block
// traffic : one read of every element, bandwidth-bound; 6.6e6 parameters: 27 MB, 6 us at 4.25 TB/s
// numerics: squares and sums in double; deterministic: block counts depend on the sizes only, no atomics
#include "cuda/core/reduce.cuh"
#include "cuda/optim/multi_tensor.cuh"
#include "engine/ops/optim/global_norm.h"

namespace pm::cuda {
namespace {

struct Item {
  const float* data;
  int64_t n;
};

// partials: one double per block
__global__ void __launch_bounds__(kBlock)
    squares_kernel(const __grid_constant__ TensorBatch<Item> batch, double* __restrict__ partials) {
  __shared__ double shared[kBlock / kWarp];
  const TensorTurn turn = turn_of_block(batch);
  const float* __restrict__ values = batch.items[turn.tensor].data;
  const int64_t n = batch.items[turn.tensor].n;
  double sum = 0.0;
#pragma unroll 4
  for (int64_t i = turn.begin; i < n; i += turn.stride) {
    const double value = values[i];
    sum += value * value;
  }
  sum = block_sum<kBlock>(sum, shared);
  if (threadIdx.x == 0) partials[blockIdx.x] = sum;
}

__global__ void __launch_bounds__(kBlock)
    finish_kernel(const double* __restrict__ partials, int64_t count, double scale, float* __restrict__ norm) {
  __shared__ double shared[kBlock / kWarp];
  double sum = 0.0;
  for (int64_t i = threadIdx.x; i < count; i += kBlock) sum += partials[i];
  sum = block_sum<kBlock>(sum, shared);
  if (threadIdx.x == 0) *norm = static_cast<float>(scale * sqrt(sum));
}

}  // namespace

void global_norm(const GlobalNormArgs& args, Stream stream) {
  const auto batches = [&](auto&& fn) {
    for_batches<Item>(
        args.items.size(),
        [&](size_t i) {
          return Item{static_cast<const float*>(args.items[i].data), args.items[i].n};
        },
        fn);
  };
  int64_t count = 0;
  batches([&](const auto& batch) { count += batch.blocks(); });
  Scratch<double> partials(stream, count);
  int64_t first = 0;
  batches([&](const auto& batch) {
    squares_kernel<<<static_cast<unsigned>(batch.blocks()), kBlock, 0, raw(stream)>>>(batch, partials.get() + first);
    PM_CHECK_LAUNCH("global_norm squares");
    first += batch.blocks();
  });
  finish_kernel<<<1, kBlock, 0, raw(stream)>>>(partials.get(), count, args.scale, static_cast<float*>(args.norm));
  PM_CHECK_LAUNCH("global_norm finish");
}

}  // namespace pm::cuda
