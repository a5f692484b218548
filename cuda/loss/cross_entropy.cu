// loss = mean over rows of sum_c target_c * (log_sum_exp(logits) - logits_c), target = (1 - s) * targets + s / classes
// dlogits = dloss / batch * (softmax(logits) * sum_c target_c - target)
// logits, targets, dlogits: (batch, classes) float32; loss, dloss: (1) float32
// launch  : one block of kRowBlock threads per row, then one block adds the rows' losses. batch blocks: 1 to 1,024 in use
// traffic : forward 2 reads, gradient 2 reads + 1 write of batch * classes * 4 bytes, the second pass over a row from L1.
//           At 1,024 x 1,000 that is 8 and 12 MB, 3 us: launch time
// numerics: exp in float of differences to the row's maximum, every sum in double
// order   : fixed by the block size: the same bits in every run and on every GPU
#include "cuda/core/reduce.cuh"
#include "engine/ops/loss/cross_entropy.h"

namespace pm::cuda {
namespace {

constexpr int kRowBlock = 128;

struct Smoothing {
  float keep;   // 1 - label_smoothing
  float share;  // label_smoothing / classes
};

Smoothing make_smoothing(double label_smoothing, int64_t classes) {
  return {static_cast<float>(1.0 - label_smoothing),
          static_cast<float>(label_smoothing / static_cast<double>(classes))};
}

__device__ __forceinline__ float smoothed(float target, Smoothing s) { return s.keep * target + s.share; }

// Maximum over the block; every thread gets it. NaN is skipped here: the sum of exponentials brings it back.
__device__ __forceinline__ float block_max(float value, float* shared) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2)
    value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, offset));
  if (threadIdx.x % kWarp == 0) shared[threadIdx.x / kWarp] = value;
  __syncthreads();
  float top = shared[0];
#pragma unroll
  for (int warp = 1; warp < kRowBlock / kWarp; ++warp) top = fmaxf(top, shared[warp]);
  return top;
}

struct RowSums {
  float top;            // maximum of the logits
  double exponentials;  // sum of exp(logits - top)
  double mass;          // sum of the targets
  double dot;           // sum of target * (logits - top)
};

// Called by the whole block; every thread gets the sums.
__device__ RowSums row_sums(const float* __restrict__ logits, const float* __restrict__ targets, int64_t classes,
                            Smoothing smoothing) {
  __shared__ float max_shared[kRowBlock / kWarp];
  __shared__ double sum_shared[kRowBlock / kWarp];
  float top = -INFINITY;
  for (int64_t c = threadIdx.x; c < classes; c += kRowBlock) top = fmaxf(top, logits[c]);
  RowSums sums{block_max(top, max_shared), 0.0, 0.0, 0.0};
  for (int64_t c = threadIdx.x; c < classes; c += kRowBlock) {
    const float below = logits[c] - sums.top, target = smoothed(targets[c], smoothing);
    sums.exponentials += static_cast<double>(expf(below));
    sums.mass += static_cast<double>(target);
    sums.dot += static_cast<double>(target) * static_cast<double>(below);
  }
  sums.exponentials = block_sum<kRowBlock>(sums.exponentials, sum_shared);
  sums.mass = block_sum<kRowBlock>(sums.mass, sum_shared);
  sums.dot = block_sum<kRowBlock>(sums.dot, sum_shared);
  return sums;
}

__global__ void __launch_bounds__(kRowBlock)
    cross_entropy_rows_kernel(const float* __restrict__ logits, const float* __restrict__ targets,
                              double* __restrict__ row_losses, int64_t classes, Smoothing smoothing) {
  const int64_t row = blockIdx.x;
  const RowSums sums = row_sums(logits + row * classes, targets + row * classes, classes, smoothing);
  if (threadIdx.x == 0) row_losses[row] = sums.mass * log(sums.exponentials) - sums.dot;
}

__global__ void __launch_bounds__(kBlock)
    cross_entropy_mean_kernel(const double* __restrict__ row_losses, int64_t batch, float* __restrict__ loss) {
  __shared__ double shared[kBlock / kWarp];
  double sum = 0.0;
  for (int64_t row = threadIdx.x; row < batch; row += kBlock) sum += row_losses[row];
  sum = block_sum<kBlock>(sum, shared);
  if (threadIdx.x == 0) *loss = static_cast<float>(sum / static_cast<double>(batch));
}

__global__ void __launch_bounds__(kRowBlock)
    cross_entropy_grad_kernel(const float* __restrict__ dloss, const float* __restrict__ logits,
                              const float* __restrict__ targets, float* __restrict__ dlogits, int64_t batch,
                              int64_t classes, Smoothing smoothing) {
  const int64_t row = int64_t{blockIdx.x} * classes;
  const RowSums sums = row_sums(logits + row, targets + row, classes, smoothing);
  const float scale = *dloss / static_cast<float>(batch);
  const float per_exponential = static_cast<float>(sums.mass / sums.exponentials);
  for (int64_t c = threadIdx.x; c < classes; c += kRowBlock) {
    const float share = per_exponential * expf(logits[row + c] - sums.top);
    dlogits[row + c] = scale * (share - smoothed(targets[row + c], smoothing));
  }
}

}  // namespace

void cross_entropy(const CrossEntropyArgs& args, Stream stream) {
  if (args.batch == 0) return;
  const Scratch<double> row_losses(stream, args.batch);
  cross_entropy_rows_kernel<<<static_cast<unsigned>(args.batch), kRowBlock, 0, raw(stream)>>>(
      static_cast<const float*>(args.logits), static_cast<const float*>(args.targets), row_losses.get(), args.classes,
      make_smoothing(args.label_smoothing, args.classes));
  PM_CHECK_LAUNCH("cross_entropy");
  cross_entropy_mean_kernel<<<1, kBlock, 0, raw(stream)>>>(row_losses.get(), args.batch,
                                                           static_cast<float*>(args.loss));
  PM_CHECK_LAUNCH("cross_entropy_mean");
}

void cross_entropy_grad(const CrossEntropyGradArgs& args, Stream stream) {
  if (args.batch == 0) return;
  cross_entropy_grad_kernel<<<static_cast<unsigned>(args.batch), kRowBlock, 0, raw(stream)>>>(
      static_cast<const float*>(args.dloss), static_cast<const float*>(args.logits),
      static_cast<const float*>(args.targets), static_cast<float*>(args.dlogits), args.batch, args.classes,
      make_smoothing(args.label_smoothing, args.classes));
  PM_CHECK_LAUNCH("cross_entropy_grad");
}

}  // namespace pm::cuda
