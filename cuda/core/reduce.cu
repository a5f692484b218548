// column_sum: the fixed-order second stage of gradient reductions.
// launch : one block of 32 x 32 threads per 32 columns; each of 32 row strands sums every 32nd row in double, then the
//          strands are added in order. traffic: rows * columns * 4 bytes, bandwidth-bound from a few thousand rows on.
#include "cuda/core/reduce.cuh"

namespace pm::cuda {
namespace {

constexpr int kStrands = 32;

__global__ void __launch_bounds__(kWarp* kStrands)
    column_sum_kernel(const float* __restrict__ partials, int64_t rows, int64_t columns, float* __restrict__ out) {
  __shared__ double strand_sum[kStrands][kWarp];
  const int64_t column = int64_t{blockIdx.x} * kWarp + threadIdx.x;
  double sum = 0.0;
  if (column < columns) {
    for (int64_t row = threadIdx.y; row < rows; row += kStrands) sum += static_cast<double>(partials[row * columns + column]);
  }
  strand_sum[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y == 0 && column < columns) {
    for (int strand = 1; strand < kStrands; ++strand) sum += strand_sum[strand][threadIdx.x];
    out[column] = static_cast<float>(sum);
  }
}

}  // namespace

void column_sum(const float* partials, int64_t rows, int64_t columns, float* out, Stream stream) {
  if (columns == 0) return;
  const dim3 block(kWarp, kStrands);
  column_sum_kernel<<<static_cast<unsigned>(ceil_div(columns, kWarp)), block, 0, raw(stream)>>>(partials, rows, columns, out);
  PM_CHECK_LAUNCH("column_sum");
}

}  // namespace pm::cuda
