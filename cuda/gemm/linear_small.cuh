// linear for few features and very many rows: the first layers, where 1e8 tokens of 3 to 48 channels leave a GEMM library's
// tiles almost empty. Any width: those of the narrow Mamba blocks go to linear_rows.cuh. Weights stay float32 here whatever the
// storage type.
//
// small_linear_kernel: y[row, n] = bias[n] + sum over k of x[row, k] * matrix(n, k); serves forward (matrix = weight) and
//   the gradient of the input (matrix = weight transposed). One thread per row with the row of x in registers; the weights
//   lie in shared memory and are read as broadcast float4, four products per load. Rows go through shared memory both
//   ways, so that global loads and stores are consecutive although a row is short.
//   launch  : kSmallRows threads, one tile of kSmallRows rows each, 1 to kMaxGrid blocks; any number of rows
//   traffic : (k + n) * sizeof(T) bytes a row, bandwidth-bound; 1e8 rows of 3 -> 12 float32: 6.0 GB, 1.4 ms at 4.25 TB/s
//   shared  : at most 34 KiB
// small_grad_weight_kernel: partials[block, n, k] = sum over the block's rows of dout[row, n] * x[row, k]; column_sum adds the
//   blocks. A thread owns a 4 x 4 tile of the product and every strands-th row; strands are added in order at the end.
//   launch  : kGradThreads threads, 1 to kMaxGradBlocks blocks of equal row counts (multiples of kGradRows)
//   traffic : (k + n) * sizeof(T) bytes a row; shared at most 25 KiB
// numerics: float32 sums in a fixed order; deterministic: geometry depends on the shape only.
#pragma once
#include "cuda/core/reduce.cuh"

namespace pm::cuda::small {

constexpr int kMaxFeatures = 48;  // on either side
constexpr int kMaxGroups = 4;
constexpr int kSmallRows = 128;
constexpr int kGradThreads = 256;
constexpr int kGradRows = 64;
constexpr int64_t kMaxGradBlocks = 132 * 16;
constexpr int kTile = 4;

// i / columns == (i * magic) >> kMagicShift for every i below kSmallRows * kMaxFeatures: the product fits 32 bits, and the
// error of magic, less than `columns` units, times i stays below one.
constexpr int kMagicShift = 19;
static_assert(int64_t{kSmallRows} * kMaxFeatures * (int64_t{1} << kMagicShift) < (int64_t{1} << 32));
static_assert(int64_t{kSmallRows} * kMaxFeatures * (kMaxFeatures - 1) < (int64_t{1} << kMagicShift));
static_assert(kGradRows <= kSmallRows);

// Tensors (rows, columns[g]) whose columns, side by side, make one matrix.
template <typename T>
struct Groups {
  T* data[kMaxGroups];
  int columns[kMaxGroups];
  unsigned magic[kMaxGroups];
  const T* addend[kMaxGroups];  // outputs: (rows, columns[g]) to add, or null
  int count = 0;

  void add(T* pointer, int64_t width, const T* addend_or_null = nullptr) {
    data[count] = pointer;
    addend[count] = addend_or_null;
    columns[count] = static_cast<int>(width);
    magic[count] = static_cast<unsigned>(((int64_t{1} << kMagicShift) + width - 1) / width);
    ++count;
  }
};

// Rows [row0, row0 + n_rows) of all groups to stage[row * stride + column].
template <typename T>
__device__ __forceinline__ void gather(const Groups<const T>& groups, int64_t row0, int n_rows, float* stage,
                                       int stride) {
  int first = 0;
  for (int g = 0; g < groups.count; ++g) {
    const int columns = groups.columns[g];
    const T* source = groups.data[g] + row0 * columns;
#pragma unroll 4
    for (int i = threadIdx.x; i < n_rows * columns; i += blockDim.x) {
      const int row = static_cast<int>((static_cast<unsigned>(i) * groups.magic[g]) >> kMagicShift);
      stage[row * stride + first + i - row * columns] = to_float(source[i]);
    }
    first += columns;
  }
}

// The way back, plus the addends. An addend may be the target: each element is read by the thread that then writes it.
template <typename T>
__device__ __forceinline__ void scatter(const Groups<T>& groups, int64_t row0, int n_rows, const float* stage,
                                        int stride) {
  int first = 0;
  for (int g = 0; g < groups.count; ++g) {
    const int columns = groups.columns[g];
    T* target = groups.data[g] + row0 * columns;
    const T* addend = groups.addend[g] != nullptr ? groups.addend[g] + row0 * columns : nullptr;
#pragma unroll 4
    for (int i = threadIdx.x; i < n_rows * columns; i += blockDim.x) {
      const int row = static_cast<int>((static_cast<unsigned>(i) * groups.magic[g]) >> kMagicShift);
      const float value = stage[row * stride + first + i - row * columns];
      target[i] = from_float<T>(addend != nullptr ? to_float(addend[i]) + value : value);
    }
    first += columns;
  }
}

// in: n_in columns in all, out: n_out columns in all; matrix(n, k) = matrix[n * stride_n + k * stride_k]; kWidth >= n_in.
template <typename T, int kWidth>
__global__ void __launch_bounds__(kSmallRows)
    small_linear_kernel(const __grid_constant__ Groups<const T> in, const float* __restrict__ matrix, int64_t stride_n,
                        int64_t stride_k, const float* __restrict__ bias, const __grid_constant__ Groups<T> out,
                        int64_t rows, int n_in, int n_out) {
  extern __shared__ float4 shared[];
  float* weights = reinterpret_cast<float*>(shared);  // (n_out, kWidth), zero beyond n_in
  float* offset = weights + n_out * kWidth;           // (n_out)
  float* stage = offset + n_out;                      // (kSmallRows, stride), an odd stride: no bank conflicts
  const int stride = max(n_in, n_out) | 1;
  for (int i = threadIdx.x; i < n_out * kWidth; i += kSmallRows) {
    const int n = i / kWidth, k = i % kWidth;
    weights[i] = k < n_in ? matrix[n * stride_n + k * stride_k] : 0.0f;
  }
  for (int n = threadIdx.x; n < n_out; n += kSmallRows) offset[n] = bias != nullptr ? bias[n] : 0.0f;

  float* mine = stage + threadIdx.x * stride;
  const int64_t step = int64_t{gridDim.x} * kSmallRows;
  for (int64_t row0 = int64_t{blockIdx.x} * kSmallRows; row0 < rows; row0 += step) {
    const int n_rows = static_cast<int>(min(int64_t{kSmallRows}, rows - row0));
    __syncthreads();  // the tile before has left the stage
    gather(in, row0, n_rows, stage, stride);
    __syncthreads();
    float x[kWidth];
#pragma unroll
    for (int k = 0; k < kWidth; ++k) x[k] = k < n_in && threadIdx.x < n_rows ? mine[k] : 0.0f;
      // No barrier here: each thread overwrites only its own row of the stage, which it has just read.
#pragma unroll 4
    for (int n = 0; n < n_out; ++n) {
      const float4* w = reinterpret_cast<const float4*>(weights + n * kWidth);
      float sum = offset[n];
#pragma unroll
      for (int k = 0; k < kWidth; k += 4) {
        const float4 w4 = w[k / 4];
        sum = fmaf(x[k], w4.x, sum);
        sum = fmaf(x[k + 1], w4.y, sum);
        sum = fmaf(x[k + 2], w4.z, sum);
        sum = fmaf(x[k + 3], w4.w, sum);
      }
      mine[n] = sum;
    }
    __syncthreads();
    scatter(out, row0, n_rows, stage, stride);
  }
}

// Sum over the strands of the tiles' products; one row of `partials` per block. combined: (threads, 16) in shared memory.
__device__ __forceinline__ void store_partials(const float (&sum)[kTile][kTile], float* combined, int strands,
                                               int tiles_k, int tiles, float* __restrict__ row, int n_in, int n_out) {
  constexpr int kCells = kTile * kTile;
  __syncthreads();  // the staged rows are no longer needed
  if (static_cast<int>(threadIdx.x) < strands * tiles) {
#pragma unroll
    for (int i = 0; i < kCells; ++i) combined[threadIdx.x * kCells + i] = sum[i / kTile][i % kTile];
  }
  __syncthreads();
  for (int i = threadIdx.x; i < n_out * n_in; i += kGradThreads) {
    const int n = i / n_in, k = i % n_in;
    const int tile = (n / kTile) * tiles_k + k / kTile;
    const int cell = (n % kTile) * kTile + k % kTile;
    float total = 0.0f;
    for (int strand = 0; strand < strands; ++strand) total += combined[(strand * tiles + tile) * kCells + cell];
    row[i] = total;
  }
}

// dout: n_out columns in all, x: n_in columns; partials: (gridDim.x, n_out, n_in)
template <typename T>
__global__ void __launch_bounds__(kGradThreads)
    small_grad_weight_kernel(const __grid_constant__ Groups<const T> dout, const __grid_constant__ Groups<const T> x,
                             int64_t rows, int64_t rows_per_block, int n_in, int n_out, float* __restrict__ partials) {
  extern __shared__ float4 shared[];
  const int tiles_n = (n_out + kTile - 1) / kTile, tiles_k = (n_in + kTile - 1) / kTile;
  const int tiles = tiles_n * tiles_k;  // at most 144
  const int strands = min(kGradThreads / tiles, kGradRows);
  const int strand = threadIdx.x / tiles, tile = threadIdx.x % tiles;
  const int stride_n = tiles_n * kTile, stride_k = tiles_k * kTile;
  float* dout_rows = reinterpret_cast<float*>(shared);  // (kGradRows, stride_n), zero beyond n_out
  float* x_rows = dout_rows + kGradRows * stride_n;     // (kGradRows, stride_k), zero beyond n_in
  for (int i = threadIdx.x; i < kGradRows * (stride_n + stride_k); i += kGradThreads) dout_rows[i] = 0.0f;

  float sum[kTile][kTile] = {};
  const int64_t begin = int64_t{blockIdx.x} * rows_per_block;
  const int64_t end = min(rows, begin + rows_per_block);
  for (int64_t row0 = begin; row0 < end; row0 += kGradRows) {
    const int n_rows = static_cast<int>(min(int64_t{kGradRows}, end - row0));
    __syncthreads();
    gather(dout, row0, n_rows, dout_rows, stride_n);
    gather(x, row0, n_rows, x_rows, stride_k);
    __syncthreads();
    if (strand < strands) {
      const float* d = dout_rows + (tile / tiles_k) * kTile;
      const float* v = x_rows + (tile % tiles_k) * kTile;
#pragma unroll 2
      for (int row = strand; row < n_rows; row += strands) {
        const float4 d4 = *reinterpret_cast<const float4*>(d + row * stride_n);
        const float4 v4 = *reinterpret_cast<const float4*>(v + row * stride_k);
        const float dn[kTile] = {d4.x, d4.y, d4.z, d4.w}, vk[kTile] = {v4.x, v4.y, v4.z, v4.w};
#pragma unroll
        for (int i = 0; i < kTile * kTile; ++i) {
          sum[i / kTile][i % kTile] = fmaf(dn[i / kTile], vk[i % kTile], sum[i / kTile][i % kTile]);
        }
      }
    }
  }
  store_partials(sum, reinterpret_cast<float*>(shared), strands, tiles_k, tiles,
                 partials + int64_t{blockIdx.x} * n_out * n_in, n_in, n_out);
}

// Smallest instantiated register row that holds n_in features.
template <typename Fn>
void dispatch_width(int n_in, Fn&& fn) {
  if (n_in <= 4) return fn.template operator()<4>();
  if (n_in <= 8) return fn.template operator()<8>();
  if (n_in <= 12) return fn.template operator()<12>();
  if (n_in <= 16) return fn.template operator()<16>();
  if (n_in <= 24) return fn.template operator()<24>();
  if (n_in <= 36) return fn.template operator()<36>();
  return fn.template operator()<kMaxFeatures>();
}

inline bool fits(int64_t in_features, int64_t out_features) {
  return in_features <= kMaxFeatures && out_features <= kMaxFeatures;
}

template <typename T>
void linear(const Groups<const T>& in, const float* matrix, int64_t stride_n, int64_t stride_k, const float* bias,
            const Groups<T>& out, int64_t rows, int n_in, int n_out, Stream stream) {
  dispatch_width(n_in, [&]<int kWidth>() {
    const size_t floats = static_cast<size_t>(n_out) * (kWidth + 1) + size_t{kSmallRows} * (std::max(n_in, n_out) | 1);
    small_linear_kernel<T, kWidth><<<grid_for(rows, kSmallRows), kSmallRows, floats * sizeof(float), raw(stream)>>>(
        in, matrix, stride_n, stride_k, bias, out, rows, n_in, n_out);
    PM_CHECK_LAUNCH("small_linear");
  });
}

// dweight: (n_out, n_in); rows > 0
template <typename T>
void grad_weight(const Groups<const T>& dout, const Groups<const T>& x, int64_t rows, int n_in, int n_out,
                 float* dweight, Stream stream) {
  const int64_t rows_per_block = ceil_div(ceil_div(rows, kMaxGradBlocks), kGradRows) * kGradRows;
  const int64_t blocks = ceil_div(rows, rows_per_block);
  const int64_t columns = ceil_div(n_out, kTile) * kTile + ceil_div(n_in, kTile) * kTile;
  const size_t floats =
      std::max<size_t>(static_cast<size_t>(kGradRows * columns), size_t{kGradThreads} * kTile * kTile);
  Scratch<float> partials(stream, blocks * n_out * n_in);
  small_grad_weight_kernel<T><<<static_cast<unsigned>(blocks), kGradThreads, floats * sizeof(float), raw(stream)>>>(
      dout, x, rows, rows_per_block, n_in, n_out, partials.get());
  PM_CHECK_LAUNCH("small_grad_weight");
  column_sum(partials.get(), blocks, int64_t{n_out} * n_in, dweight, stream);
}

}  // namespace pm::cuda::small
