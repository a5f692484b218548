// column_sum: the fixed-order second stage of gradient reductions, in one launch.
// launch : a block of kThreads threads per kWidth columns (4 to 32, 256 of very many) and span of rows: strand s of
//          kThreads / kWidth sums rows s, s + strands, .. in double, kAtOnce loads in flight; the strands are added by shuffles,
//          the warps in order. Up to kAloneRounds rounds of loads are one span. More are cut into spans of one round, at most
//          kWantedBlocks blocks: each leaves its sums in double, and the last one of a tile to arrive adds them in their order.
//          traffic: rows * columns * 4 bytes; what takes the time of small sums are the rounds, about 0.7 us each.
// deterministic: the cut depends on the shape alone, and so does the order of every sum: which block arrives last does not show.
#include "cuda/core/reduce.cuh"

namespace pm::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / kWarp;
constexpr int kAtOnce = 8;  // loads of a thread in flight: a round
constexpr int64_t kAloneRounds = 3;
constexpr int64_t kWantedBlocks = 132 * 8;
constexpr int64_t kManyColumns = kWantedBlocks * kWarp;
static_assert(kWantedBlocks <= kTickets);

// Sum over rows [first, last) of one column of the thread's strand; load(row) gives a double.
template <int kStrands, typename Load>
__device__ __forceinline__ double strand_sum(int64_t first, int64_t last, Load&& load) {
  double sum = 0.0;
  for (int64_t row0 = first; row0 < last; row0 += kAtOnce * kStrands) {
    decltype(load(row0)) values[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int64_t row = row0 + i * kStrands;
      values[i] = row < last ? load(row) : 0;
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) sum += static_cast<double>(values[i]);
  }
  return sum;
}

// Over all strands, of use to the threads of the first; `shared` may be used again after the next barrier.
template <int kWidth>
__device__ __forceinline__ double block_columns(double sum, double (&shared)[kWarps][kWarp]) {
  if constexpr (kWidth <= kWarp) {
#pragma unroll
    for (int offset = kWidth; offset < kWarp; offset *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, offset);
    shared[threadIdx.x / kWarp][threadIdx.x % kWarp] = sum;
    __syncthreads();
    if (threadIdx.x < kWidth) {
      for (int warp = 1; warp < kWarps; ++warp) sum += shared[warp][threadIdx.x];
    }
  }
  return sum;
}

// Block (tile, span). sums: (spans, columns); tickets: one per tile, zero before and after. Neither is used by a single span.
template <int kWidth>
__global__ void __launch_bounds__(kThreads)
    column_sum_kernel(const float* __restrict__ partials, int64_t rows, int64_t columns, int64_t span_rows,
                      const __grid_constant__ ColumnRanges out, double* sums, unsigned* tickets) {
  constexpr int kStrands = kThreads / kWidth;
  __shared__ double shared[kWarps][kWarp];
  __shared__ bool last_to_arrive;
  const int strand = threadIdx.x / kWidth;
  const int64_t column = int64_t{blockIdx.x} * kWidth + threadIdx.x % kWidth;
  const bool exists = column < columns, writes = exists && strand == 0;
  const int64_t first = blockIdx.y * span_rows, last = exists ? min(rows, first + span_rows) : 0;
  double sum = block_columns<kWidth>(
      strand_sum<kStrands>(first + strand, last, [&](int64_t row) { return partials[row * columns + column]; }),
      shared);
  if (gridDim.y > 1) {
    if (writes) sums[blockIdx.y * columns + column] = sum;
    __threadfence();
    __syncthreads();  // the sums of the whole block are out; `shared` is free
    if (threadIdx.x == 0) last_to_arrive = atomicAdd(tickets + blockIdx.x, 1u) == gridDim.y - 1;
    __syncthreads();
    if (!last_to_arrive) return;
    __threadfence();
    if (threadIdx.x == 0) tickets[blockIdx.x] = 0;
    sum = block_columns<kWidth>(
        strand_sum<kStrands>(strand, exists ? gridDim.y : 0,
                             [&](int64_t span) { return __ldcg(sums + span * columns + column); }),
        shared);
  }
  if (!writes) return;
  int range = 0;
  int64_t at = column;
  while (at >= out.columns[range]) at -= out.columns[range++];
  out.out[range][at] = static_cast<float>(sum);
}

template <int kWidth>
void launch(const float* partials, int64_t rows, int64_t columns, const ColumnRanges& out, Stream stream) {
  constexpr int64_t kRound = kAtOnce * (kThreads / kWidth);
  const int64_t tiles = ceil_div(columns, kWidth), most = std::max<int64_t>(1, kWantedBlocks / tiles);
  const int64_t span_rows = rows <= kAloneRounds * kRound ? rows : std::max(kRound, ceil_div(rows, most));
  const int64_t spans = rows == 0 ? 1 : ceil_div(rows, span_rows);
  const Scratch<double> sums(stream, spans > 1 ? spans * columns : 0);
  const dim3 grid(static_cast<unsigned>(tiles), static_cast<unsigned>(spans));
  column_sum_kernel<kWidth>
      <<<grid, kThreads, 0, raw(stream)>>>(partials, rows, columns, span_rows, out, sums.get(), state(stream).tickets);
  PM_CHECK_LAUNCH("column_sum");
}

}  // namespace

void column_sum(const float* partials, int64_t rows, const ColumnRanges& out, Stream stream) {
  int64_t columns = 0;
  for (const int64_t count : out.columns) columns += count;
  if (columns == 0) return;
  if (columns <= 4) return launch<4>(partials, rows, columns, out, stream);
  if (columns <= 8) return launch<8>(partials, rows, columns, out, stream);
  if (columns <= 16) return launch<16>(partials, rows, columns, out, stream);
  if (columns < kManyColumns) return launch<kWarp>(partials, rows, columns, out, stream);
  launch<kThreads>(partials, rows, columns, out, stream);
}

void column_sum(const float* partials, int64_t rows, int64_t columns, float* out, Stream stream) {
  column_sum(partials, rows, {{out}, {columns}}, stream);
}

}  // namespace pm::cuda
