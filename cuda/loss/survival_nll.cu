// loss = mean over the batch of -log S(bin) where censored, else -log S(bin - 1) - log h(bin);
// h(j) = sigmoid(logit(j)), S(j) = prod_{i<=j} (1 - h(i)), arguments of the logarithms at least 1e-7
// -log S(k): dlogit(j) = h(j) for j <= k;  -log h(k): dlogit(k) = h(k) - 1;  zero where an argument was raised
// logits, dlogits: (batch, n_bins) float32; bin, censored: (batch) int64; loss, dloss: (1) float32
// launch  : forward one block, a thread takes every kBlock-th row; gradient a thread per row, grid-stride. In use batch is 1
//           to 64 and n_bins is 4, so this is launch time
// traffic : batch * (n_bins * 4 + 16) bytes, twice for the gradient
// numerics: double throughout; NaN for a bin or a flag out of range, whose row is not read beyond its end
// order   : fixed by the block size: the same bits in every run and on every GPU
#include "cuda/core/reduce.cuh"
#include "engine/ops/loss/survival_nll.h"

namespace pm::cuda {
namespace {

__device__ __forceinline__ double hazard(double logit) { return 1.0 / (1.0 + exp(-logit)); }

// S(last), 1 for last = -1.
__device__ double survival(const float* __restrict__ logits, int64_t last) {
  double product = 1.0;
  for (int64_t j = 0; j <= last; ++j)
    product *= hazard(-static_cast<double>(logits[j]));  // 1 - sigmoid(v) = sigmoid(-v)
  return product;
}

__device__ __forceinline__ double floored_log(double argument) {
  return log(argument < kSurvivalFloor ? kSurvivalFloor : argument);  // lets NaN through
}

__device__ __forceinline__ bool in_range(int64_t bin, int64_t censored, int64_t n_bins) {
  return bin >= 0 && bin < n_bins && (censored == 0 || censored == 1);
}

__global__ void __launch_bounds__(kBlock)
    survival_nll_kernel(const float* __restrict__ logits, const int64_t* __restrict__ bins,
                        const int64_t* __restrict__ censored, float* __restrict__ loss, int64_t batch, int64_t n_bins) {
  __shared__ double shared[kBlock / kWarp];
  double sum = 0.0;
  for (int64_t row = threadIdx.x; row < batch; row += kBlock) {
    const float* row_logits = logits + row * n_bins;
    const int64_t bin = bins[row];
    if (!in_range(bin, censored[row], n_bins)) {
      sum = nan("");
    } else if (censored[row] == 1) {
      sum -= floored_log(survival(row_logits, bin));
    } else {
      sum -= floored_log(survival(row_logits, bin - 1)) + floored_log(hazard(static_cast<double>(row_logits[bin])));
    }
  }
  sum = block_sum<kBlock>(sum, shared);
  if (threadIdx.x == 0) *loss = static_cast<float>(sum / static_cast<double>(batch));
}

__global__ void __launch_bounds__(kBlock)
    survival_nll_grad_kernel(const float* __restrict__ dloss, const float* __restrict__ logits,
                             const int64_t* __restrict__ bins, const int64_t* __restrict__ censored,
                             float* __restrict__ dlogits, int64_t batch, int64_t n_bins) {
  const double scale = static_cast<double>(*dloss) / static_cast<double>(batch);
  const int64_t step = int64_t{gridDim.x} * kBlock;
  for (int64_t row = int64_t{blockIdx.x} * kBlock + threadIdx.x; row < batch; row += step) {
    const float* row_logits = logits + row * n_bins;
    const int64_t bin = bins[row];
    const bool valid = in_range(bin, censored[row], n_bins), died = censored[row] == 0;
    const int64_t last = died ? bin - 1 : bin;  // survived bins
    const bool survival_counts = valid && !(survival(row_logits, last) < kSurvivalFloor);
    for (int64_t j = 0; j < n_bins; ++j) {
      const double logit = static_cast<double>(row_logits[j]), h = hazard(logit);
      double gradient = 0.0;
      if (j <= last && survival_counts) gradient = h;
      if (j == bin && died && !(h < kSurvivalFloor)) gradient = -hazard(-logit);
      dlogits[row * n_bins + j] = static_cast<float>(valid ? scale * gradient : nan(""));
    }
  }
}

}  // namespace

void survival_nll(const SurvivalNllArgs& args, Stream stream) {
  if (args.batch == 0) return;
  survival_nll_kernel<<<1, kBlock, 0, raw(stream)>>>(static_cast<const float*>(args.logits), args.bin, args.censored,
                                                     static_cast<float*>(args.loss), args.batch, args.n_bins);
  PM_CHECK_LAUNCH("survival_nll");
}

void survival_nll_grad(const SurvivalNllGradArgs& args, Stream stream) {
  if (args.batch == 0) return;
  survival_nll_grad_kernel<<<grid_for(args.batch), kBlock, 0, raw(stream)>>>(
      static_cast<const float*>(args.dloss), static_cast<const float*>(args.logits), args.bin, args.censored,
      static_cast<float*>(args.dlogits), args.batch, args.n_bins);
  PM_CHECK_LAUNCH("survival_nll_grad");
}

}  // namespace pm::cuda
