// column_sum: the fixed-order second stage of gradient reductions.
// launch : one block of 32 x kStrands threads per 32 columns: strand s sums rows s, s + kStrands, .. in double, then the strands
//          are added in order. Many rows are cut into spans first, one block each, enough to fill the GPU; their sums are
//          summed in the same way. traffic: rows * columns * 4 bytes.
// deterministic: the cut depends on the shape alone.
#include "cuda/core/reduce.cuh"

namespace pm::cuda {
namespace {

constexpr int kStrands = 32, kSpanStrands = 8;
constexpr int64_t kManyTerms = int64_t{1} << 19;  // below, one launch is as fast as two
constexpr int64_t kMinSpanRows = 32, kWantedBlocks = 132 * 8;

// Block (tile, span): 32 columns, rows [span * span_rows, ..) to row `span` of the outputs.
template <int kRowStrands>
__global__ void __launch_bounds__(kWarp* kRowStrands)
    column_sum_kernel(const float* __restrict__ partials, int64_t rows, int64_t columns, int64_t span_rows,
                      const __grid_constant__ ColumnRanges out) {
  __shared__ double strand_sum[kRowStrands][kWarp];
  const int64_t column = int64_t{blockIdx.x} * kWarp + threadIdx.x, first = blockIdx.y * span_rows;
  const int64_t last = min(rows, first + span_rows);
  double sum = 0.0;
  if (column < columns) {
#pragma unroll 4
    for (int64_t row = first + threadIdx.y; row < last; row += kRowStrands) {
      sum += static_cast<double>(partials[row * columns + column]);
    }
  }
  strand_sum[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y == 0 && column < columns) {
    for (int strand = 1; strand < kRowStrands; ++strand) sum += strand_sum[strand][threadIdx.x];
    int range = 0;
    int64_t at = column;
    while (at >= out.columns[range]) at -= out.columns[range++];
    out.out[range][blockIdx.y * out.columns[range] + at] = static_cast<float>(sum);
  }
}

template <int kRowStrands>
void launch(const float* partials, int64_t rows, int64_t columns, int64_t span_rows, int64_t spans,
            const ColumnRanges& out, Stream stream) {
  const dim3 grid(static_cast<unsigned>(ceil_div(columns, kWarp)), static_cast<unsigned>(spans));
  column_sum_kernel<kRowStrands>
      <<<grid, dim3(kWarp, kRowStrands), 0, raw(stream)>>>(partials, rows, columns, span_rows, out);
  PM_CHECK_LAUNCH("column_sum");
}

}  // namespace

void column_sum(const float* partials, int64_t rows, const ColumnRanges& out, Stream stream) {
  int64_t columns = 0;
  for (const int64_t count : out.columns) columns += count;
  if (columns == 0) return;
  const int64_t wanted = ceil_div(kWantedBlocks, ceil_div(columns, kWarp));
  const int64_t span_rows = std::max(kMinSpanRows, ceil_div(rows, wanted)), spans = ceil_div(rows, span_rows);
  if (spans <= 1 || rows * columns < kManyTerms) return launch<kStrands>(partials, rows, columns, rows, 1, out, stream);
  const Scratch<float> sums(stream, spans * columns);
  launch<kSpanStrands>(partials, rows, columns, span_rows, spans, {{sums.get()}, {columns}}, stream);
  launch<kStrands>(sums.get(), spans, columns, spans, 1, out, stream);
}

void column_sum(const float* partials, int64_t rows, int64_t columns, float* out, Stream stream) {
  column_sum(partials, rows, {{out}, {columns}}, stream);
}

}  // namespace pm::cuda
