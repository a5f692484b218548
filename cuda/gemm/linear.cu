// out = x weight^T (+ bias), and its gradients, by cuBLASLt; few features go to cuda/gemm/linear_small.cuh,
// the widths of the narrow Mamba blocks to cuda/gemm/linear_rows.cuh
//   forward     : per group and chunk of rows one GEMM (rows, in) x (in, features)
//   dx          : per group and chunk of rows one GEMM (rows, features) x (features, in), groups added in order
//   dweight     : per group one strided-batched GEMM over spans of rows into float32 partials, one more for the rows left
//                 over, then column_sum: two stages in a fixed order
//   dbias       : per span of rows and 32 columns one block into float32 partials, then column_sum
// cuBLAS is column-major, so each row-major matrix is handed over as its transpose.
// launch  : chunks of at most 2^22 rows keep every grid of the library in range; spans of 256 to 4096 rows, so that one
//           sequence of 5e4 rows fills the GPU and 1e8 rows need no more than kPartialFloats of scratch
// traffic : forward (in + out) * rows * sizeof(T) bytes while in or out is below a few hundred, arithmetic-bound above:
//           768 -> 3072 float32 4.7 MFLOP a row, 79 ns a row at 60 TFLOP/s
// numerics: float32 GEMMs are true float32 unless the backend allows TF32; bf16 GEMMs take weights rounded to bf16, add in float32 and round once per
//           group; dweight and dbias leave in float32
// deterministic: no atomics, geometry from the shape alone, one stream with one workspace for the library
#include "cuda/core/matmul.h"
#include "cuda/core/reduce.cuh"
#include "cuda/gemm/linear_rows.cuh"
#include "cuda/gemm/linear_small.cuh"
#include "engine/ops/gemm/linear.h"

namespace pm::cuda {
namespace {

constexpr int64_t kChunkRows = int64_t{1} << 22;
constexpr int64_t kMinSpanRows = 256, kMaxSpanRows = 4096, kMaxSpans = 32768;
constexpr int64_t kPartialFloats = int64_t{1} << 25;  // 128 MiB of partial weight gradients
constexpr int64_t kTilesWanted = 132 * 4;             // blocks that fill the reference GPU
constexpr int kStrands = 8;                           // row strands of a column-partials block
constexpr int64_t kMinBiasRows = 512, kMaxBiasSpans = 1024;
static_assert(kMaxLinearGroups <= small::kMaxGroups);

template <typename T>
constexpr cudaDataType_t blas_type() {
  return std::is_same_v<T, float> ? CUDA_R_32F : CUDA_R_16BF;
}

// d = op(a) op(b) + c, column-major; `batch` products at the given strides (elements). c: null, or as in Matmul::run
template <typename Out>
struct Product {
  cublasOperation_t op_a, op_b;
  int64_t m, n, k;
  const void* a;
  int64_t lda;
  const void* b;
  int64_t ldb;
  const Out* c;
  Out* d;
  int64_t ldd;
  int64_t stride_a = 0, stride_b = 0, stride_d = 0, batch = 1;
};

template <typename T, typename Out>
void multiply(const Product<Out>& p, Stream stream) {
  const MatmulShape shape{p.op_a,
                          p.op_b,
                          p.m,
                          p.n,
                          p.k,
                          p.lda,
                          p.ldb,
                          p.ldd,
                          blas_type<T>(),
                          blas_type<Out>(),
                          p.stride_a,
                          p.stride_b,
                          p.stride_d,
                          p.batch,
                          state(stream).tf32};
  const bool adds = p.c != nullptr;
  state(stream).matmul->run(shape, p.a, p.b, adds ? 1.0f : 0.0f, adds ? p.c : p.d, p.d, raw(stream));
}

__global__ void __launch_bounds__(kBlock)
    round_kernel(const float* __restrict__ values, __nv_bfloat16* __restrict__ rounded, int64_t n) {
  const int64_t step = int64_t{gridDim.x} * kBlock;
  for (int64_t i = int64_t{blockIdx.x} * kBlock + threadIdx.x; i < n; i += step)
    rounded[i] = from_float<__nv_bfloat16>(values[i]);
}

// Elements [first, first + count) of the weight, those of one group, in the storage type; bf16 ones that
// the caller does not have in scratch memory of their own, so that every group starts aligned.
template <typename T>
class GroupWeight {
 public:
  GroupWeight(const void* weight, const void* stored, int64_t first, int64_t count, Stream stream)
      : given_(static_cast<const T*>(std::is_same_v<T, float> ? weight : stored)),
        first_(first),
        rounded_(stream, given_ != nullptr ? 0 : count) {
    if constexpr (!std::is_same_v<T, float>) {
      if (given_ != nullptr) return;
      const float* values = static_cast<const float*>(weight) + first;
      round_kernel<<<grid_for(count), kBlock, 0, raw(stream)>>>(values, rounded_.get(), count);
      PM_CHECK_LAUNCH("linear round weight");
    }
  }
  const void* get() const {
    return given_ != nullptr ? static_cast<const void*>(given_ + first_) : static_cast<const void*>(rounded_.get());
  }

 private:
  const T* given_;
  int64_t first_;
  Scratch<__nv_bfloat16> rounded_;
};

template <typename T>
__global__ void __launch_bounds__(kBlock)
    add_bias_kernel(T* out, const float* __restrict__ bias, int64_t n, int64_t columns) {
  const int64_t step = int64_t{gridDim.x} * kBlock;
  for (int64_t i = int64_t{blockIdx.x} * kBlock + threadIdx.x; i < n; i += step) {
    out[i] = from_float<T>(to_float(out[i]) + bias[i % columns]);
  }
}

// partials[span, column] = sum over the span's rows; block = (32 columns, kStrands), grid = spans * column tiles
template <typename T>
__global__ void __launch_bounds__(kWarp* kStrands)
    column_partials_kernel(const T* __restrict__ matrix, int64_t rows, int64_t columns, int64_t span_rows,
                           int64_t column_tiles, float* __restrict__ partials) {
  __shared__ float strand_sum[kStrands][kWarp];
  const int64_t span = blockIdx.x / column_tiles;
  const int64_t column = blockIdx.x % column_tiles * kWarp + threadIdx.x;
  const int64_t end = min(rows, (span + 1) * span_rows);
  float sum = 0.0f;
  if (column < columns) {
    for (int64_t row = span * span_rows + threadIdx.y; row < end; row += kStrands)
      sum += to_float(matrix[row * columns + column]);
  }
  strand_sum[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y == 0 && column < columns) {
    for (int strand = 1; strand < kStrands; ++strand) sum += strand_sum[strand][threadIdx.x];
    partials[span * columns + column] = sum;
  }
}

template <typename Fn>
void for_row_chunks(int64_t rows, Fn&& fn) {
  for (int64_t begin = 0; begin < rows; begin += kChunkRows) fn(begin, std::min(kChunkRows, rows - begin));
}

template <typename T>
void blas_linear(const LinearArgs& args, Stream stream) {
  const int64_t in = args.in_features;
  const float* bias = static_cast<const float*>(args.bias);
  int64_t first = 0;
  for (const LinearOut& group : args.groups) {
    const int64_t columns = group.features;
    const GroupWeight<T> group_weight(args.weight, args.stored_weight, first, columns * in, stream);
    T* out = static_cast<T*>(group.data);
    const T* addend = static_cast<const T*>(group.addend);
    for_row_chunks(args.rows, [&](int64_t begin, int64_t rows) {
      const T* x = static_cast<const T*>(args.x) + begin * in;
      multiply<T, T>({CUBLAS_OP_T, CUBLAS_OP_N, columns, rows, in, group_weight.get(), in, x, in,
                      addend != nullptr ? addend + begin * columns : nullptr, out + begin * columns, columns},
                     stream);
    });
    if (bias != nullptr) {
      const int64_t n = args.rows * columns;
      add_bias_kernel<T><<<grid_for(n), kBlock, 0, raw(stream)>>>(out, bias, n, columns);
      PM_CHECK_LAUNCH("linear add bias");
      bias += columns;
    }
    first += columns * in;
  }
}

template <typename T>
void blas_grad_input(const LinearGradInputArgs& args, Stream stream) {
  const int64_t in = args.in_features;
  int64_t first = 0;
  for (const LinearDout& group : args.groups) {
    const int64_t columns = group.features;
    const GroupWeight<T> group_weight(args.weight, args.stored_weight, first, columns * in, stream);
    for_row_chunks(args.rows, [&](int64_t begin, int64_t rows) {
      const T* dout = static_cast<const T*>(group.data) + begin * columns;
      T* dx = static_cast<T*>(args.dx) + begin * in;
      multiply<T, T>({CUBLAS_OP_N, CUBLAS_OP_N, in, rows, columns, group_weight.get(), in, dout, columns,
                      first > 0 ? dx : nullptr, dx, in},
                     stream);
    });
    first += columns * in;
  }
}

// Rows of one partial product: enough spans to fill the GPU, few enough for the scratch memory.
int64_t span_rows_for(int64_t rows, int64_t in, int64_t columns) {
  const int64_t tiles = ceil_div(in, 64) * ceil_div(columns, 64);
  const int64_t filling = ceil_div(ceil_div(rows, ceil_div(kTilesWanted, tiles)), 64) * 64;
  const int64_t most_spans = std::clamp<int64_t>(kPartialFloats / (in * columns), 1, kMaxSpans);
  return std::max(std::clamp(filling, kMinSpanRows, kMaxSpanRows), ceil_div(ceil_div(rows, most_spans), 64) * 64);
}

template <typename T>
void blas_grad_weight(const LinearGradWeightArgs& args, Stream stream) {
  const int64_t in = args.in_features;
  const T* x = static_cast<const T*>(args.x);
  float* dweight = static_cast<float*>(args.dweight);
  for (const LinearDout& group : args.groups) {
    const int64_t columns = group.features;
    const int64_t size = columns * in;
    const T* dout = static_cast<const T*>(group.data);
    const int64_t span_rows = span_rows_for(args.rows, in, columns);
    const int64_t whole = args.rows / span_rows, rest = args.rows % span_rows;
    Scratch<float> partials(stream, (whole + (rest > 0 ? 1 : 0)) * size);
    if (whole > 0) {
      multiply<T, float>({CUBLAS_OP_N, CUBLAS_OP_T, in, columns, span_rows, x, in, dout, columns, nullptr,
                          partials.get(), in, span_rows * in, span_rows * columns, size, whole},
                         stream);
    }
    if (rest > 0) {
      const int64_t begin = whole * span_rows;
      multiply<T, float>({CUBLAS_OP_N, CUBLAS_OP_T, in, columns, rest, x + begin * in, in, dout + begin * columns,
                          columns, nullptr, partials.get() + whole * size, in},
                         stream);
    }
    column_sum(partials.get(), whole + (rest > 0 ? 1 : 0), size, dweight, stream);
    dweight += size;
  }
}

template <typename T>
small::Groups<const T> dout_groups(const std::vector<LinearDout>& douts) {
  small::Groups<const T> groups;
  for (const LinearDout& dout : douts) groups.add(static_cast<const T*>(dout.data), dout.features);
  return groups;
}

template <typename T, typename Pointer>
small::Groups<T> one_group(Pointer* data, int64_t features) {
  small::Groups<T> groups;
  groups.add(static_cast<T*>(data), features);
  return groups;
}

}  // namespace

void linear(const LinearArgs& args, Stream stream) {
  if (args.rows == 0) return;
  dispatch_float(args.dtype, [&]<typename T>() {
    if (!small::fits(args.in_features, args.out_features)) return blas_linear<T>(args, stream);
    small::Groups<T> out;
    for (const LinearOut& group : args.groups) {
      out.add(static_cast<T*>(group.data), group.features, static_cast<const T*>(group.addend));
    }
    const auto x = one_group<const T>(args.x, args.in_features);
    const float* weight = static_cast<const float*>(args.weight);
    const float* bias = static_cast<const float*>(args.bias);
    if (bias == nullptr && small::rows_linear<T>(x, weight, args.in_features, 1, out, args.rows, stream)) return;
    small::linear<T>(x, weight, args.in_features, 1, bias, out, args.rows, static_cast<int>(args.in_features),
                     static_cast<int>(args.out_features), stream);
  });
}

void linear_grad_input(const LinearGradInputArgs& args, Stream stream) {
  if (args.rows == 0) return;
  dispatch_float(args.dtype, [&]<typename T>() {
    if (!small::fits(args.in_features, args.out_features)) return blas_grad_input<T>(args, stream);
    const auto dout = dout_groups<T>(args.groups);
    const auto dx = one_group<T>(args.dx, args.in_features);
    const float* weight = static_cast<const float*>(args.weight);
    if (small::rows_linear<T>(dout, weight, 1, args.in_features, dx, args.rows, stream)) return;
    small::linear<T>(dout, weight, 1, args.in_features, nullptr, dx, args.rows, static_cast<int>(args.out_features),
                     static_cast<int>(args.in_features), stream);
  });
}

void linear_grad_weight(const LinearGradWeightArgs& args, Stream stream) {
  float* dweight = static_cast<float*>(args.dweight);
  if (args.rows == 0) return column_sum(nullptr, 0, args.out_features * args.in_features, dweight, stream);
  dispatch_float(args.dtype, [&]<typename T>() {
    if (!small::fits(args.in_features, args.out_features)) return blas_grad_weight<T>(args, stream);
    const auto dout = dout_groups<T>(args.groups);
    const int in = static_cast<int>(args.in_features);
    if (small::rows_grad_weight<T>(dout, static_cast<const T*>(args.x), args.rows, in, dweight, stream)) return;
    small::grad_weight<T>(dout, one_group<const T>(args.x, in), args.rows, in, static_cast<int>(args.out_features),
                          dweight, stream);
  });
}

void linear_grad_bias(const LinearGradBiasArgs& args, Stream stream) {
  const int64_t columns = args.out_features;
  const int64_t span_rows = std::max(kMinBiasRows, ceil_div(args.rows, kMaxBiasSpans));
  const int64_t spans = ceil_div(args.rows, span_rows), column_tiles = ceil_div(columns, kWarp);
  Scratch<float> partials(stream, spans * columns);
  if (spans > 0) {
    dispatch_float(args.dtype, [&]<typename T>() {
      column_partials_kernel<T><<<static_cast<unsigned>(spans * column_tiles), dim3(kWarp, kStrands), 0, raw(stream)>>>(
          static_cast<const T*>(args.dout), args.rows, columns, span_rows, column_tiles, partials.get());
      PM_CHECK_LAUNCH("linear column partials");
    });
  }
  column_sum(partials.get(), spans, columns, static_cast<float*>(args.dbias), stream);
}

}  // namespace pm::cuda
