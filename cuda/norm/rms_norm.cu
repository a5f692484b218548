// out = x * scale * weight,  scale = 1 / sqrt(mean(x^2) + eps) of the row
// dx = scale * weight * dout - x * scale^3 * mean(weight * dout * x) + addend;  dweight = sum over rows of dout * x * scale
// x, out, dout, dx, addend: (rows, channels); weight, dweight: (channels) float32
//
// launch  : up to 32 channels (millions of rows): a block takes tiles of 128 rows. The tile is read as one flat run, so
//           loads and stores are coalesced whatever the row length, and kept in shared memory with an odd row stride;
//           then one thread sums one row. Above 32 channels a warp takes a row, or four rows at once up to 128
//           channels, to keep enough loads in flight. Forward at most kMaxGrid blocks, gradient at most kGradGrid,
//           looping over tiles or rows.
// traffic : forward 1 read + 1 write, gradient 2 reads (3 with an addend) + 1 write of rows * channels * sizeof(T) bytes;
//           the second pass over a row comes from L1 or L2. Bandwidth-bound: floor at 4.25 TB/s 1.9 us and 2.8 us per 1e6 float32.
// numerics: float maths. dweight: every block sums its rows in float in a fixed order and writes one row of partial
//           sums; column_sum adds those in double. Grid sizes are constants, so the bits are the same in every run and
//           on every GPU.
#include "cuda/core/reduce.cuh"
#include "engine/ops/norm/rms_norm.h"

namespace pm::cuda {
namespace {

constexpr int kTileRows = 128;          // rows of a tile and threads of its block
constexpr int kSmallChannels = 32;      // up to here tiles, above warps
constexpr int kManyRowsChannels = 128;  // up to here a warp takes kManyRows rows at once
constexpr int kManyRows = 4;
constexpr int kAtOnce = 8;  // elements of a tile that a thread adds to at once
constexpr int kWarps = kBlock / kWarp;
constexpr int64_t kGradGrid = 132 * 8;
constexpr int64_t kSharedFloats = 12288;  // 48 KiB, the shared memory any block may have

// Row of a flat index inside a tile: flat / channels by a multiplication. Exact for flat < 128 * channels and up to 32
// channels: the reciprocal is at most channels / 2^20 too large relative to 1, and 128 * 32 * 32 < 2^20.
constexpr int kReciprocalBits = 20;
__device__ __forceinline__ unsigned reciprocal_of(int channels) {
  return ((1u << kReciprocalBits) + channels - 1) / channels;
}
__device__ __forceinline__ int row_of(int flat, unsigned reciprocal) {
  return static_cast<int>((static_cast<unsigned>(flat) * reciprocal) >> kReciprocalBits);
}

// Copies `count` elements of flat rows into a tile of row stride channels | 1.
template <typename T>
__device__ __forceinline__ void load_tile(const T* __restrict__ source, float* tile, int count, int channels,
                                          unsigned reciprocal) {
  const int padding = (channels | 1) - channels;
#pragma unroll 8
  for (int i = threadIdx.x; i < count; i += kTileRows) tile[i + row_of(i, reciprocal) * padding] = to_float(source[i]);
}

template <typename T>
__global__ void __launch_bounds__(kTileRows)
    rms_norm_tile_kernel(const T* __restrict__ x, const float* __restrict__ weight, T* __restrict__ out, int64_t rows,
                         int channels, float eps) {
  extern __shared__ float shared[];
  const int stride = channels | 1;
  float* tile = shared;                        // (kTileRows, stride)
  float* scale = shared + kTileRows * stride;  // (kTileRows)
  const unsigned reciprocal = reciprocal_of(channels);
  const int64_t step = int64_t{gridDim.x} * kTileRows;
  for (int64_t first = int64_t{blockIdx.x} * kTileRows; first < rows; first += step) {
    const int tile_rows = static_cast<int>(min(int64_t{kTileRows}, rows - first)), count = tile_rows * channels;
    __syncthreads();  // everybody is done with the tile before
    load_tile(x + first * channels, tile, count, channels, reciprocal);
    __syncthreads();
    if (threadIdx.x < tile_rows) {
      const float* row = tile + threadIdx.x * stride;
      float squares = 0.0f;
      for (int c = 0; c < channels; ++c) squares += row[c] * row[c];
      scale[threadIdx.x] = rsqrtf(squares / channels + eps);
    }
    __syncthreads();
    T* target = out + first * channels;
    for (int i = threadIdx.x; i < count; i += kTileRows) {
      const int row = row_of(i, reciprocal), c = i - row * channels;
      target[i] = from_float<T>(tile[row * stride + c] * scale[row] * weight[c]);
    }
  }
}

// One warp per kRows neighbouring rows.
template <typename T, int kRows>
__global__ void __launch_bounds__(kBlock)
    rms_norm_kernel(const T* __restrict__ x, const float* __restrict__ weight, T* __restrict__ out, int64_t rows,
                    int64_t channels, float eps) {
  constexpr int kUnroll = kRows == 1 ? 8 : 2;
  const int lane = threadIdx.x % kWarp;
  const int64_t step = int64_t{gridDim.x} * kWarps * kRows;
  for (int64_t first = (int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarp) * kRows; first < rows; first += step) {
    const T* source = x + first * channels;
    T* target = out + first * channels;
    const int count = static_cast<int>(min(int64_t{kRows}, rows - first));
    float scale[kRows] = {};
#pragma unroll kUnroll
    for (int64_t c = lane; c < channels; c += kWarp) {
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const float value = r < count ? to_float(source[r * channels + c]) : 0.0f;
        scale[r] += value * value;
      }
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) scale[r] = rsqrtf(warp_sum(scale[r]) / channels + eps);
#pragma unroll kUnroll
    for (int64_t c = lane; c < channels; c += kWarp) {
      const float weight_c = weight[c];
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        if (r < count)
          target[r * channels + c] = from_float<T>(to_float(source[r * channels + c]) * scale[r] * weight_c);
      }
    }
  }
}

// partials: (gridDim.x, channels), one row per block. addend may be null; it may be dx, so that no load of it can pass a store
// of dx: a thread loads several elements, then stores as many.
template <typename T>
__global__ void __launch_bounds__(kTileRows)
    rms_norm_grad_tile_kernel(const T* __restrict__ dout, const T* __restrict__ x, const float* __restrict__ weight,
                              const T* addend, T* dx, float* __restrict__ partials, int64_t rows, int channels,
                              float eps) {
  extern __shared__ float shared[];
  const int stride = channels | 1;
  float* x_tile = shared;                          // (kTileRows, stride)
  float* dout_tile = x_tile + kTileRows * stride;  // (kTileRows, stride)
  float* scale = dout_tile + kTileRows * stride;   // (kTileRows)
  float* projection = scale + kTileRows;           // (kTileRows)
  const unsigned reciprocal = reciprocal_of(channels);
  // For dweight a thread owns one channel of every strands-th row.
  const int strands = kTileRows / channels, strand = threadIdx.x / channels, channel = threadIdx.x % channels;
  float sum = 0.0f;
  const int64_t step = int64_t{gridDim.x} * kTileRows;
  for (int64_t first = int64_t{blockIdx.x} * kTileRows; first < rows; first += step) {
    const int tile_rows = static_cast<int>(min(int64_t{kTileRows}, rows - first)), count = tile_rows * channels;
    __syncthreads();  // everybody is done with the tiles before
    load_tile(x + first * channels, x_tile, count, channels, reciprocal);
    load_tile(dout + first * channels, dout_tile, count, channels, reciprocal);
    __syncthreads();
    if (threadIdx.x < tile_rows) {
      float squares = 0.0f, dot = 0.0f;
      for (int c = 0; c < channels; ++c) {
        const float value = x_tile[threadIdx.x * stride + c];
        squares += value * value;
        dot += weight[c] * dout_tile[threadIdx.x * stride + c] * value;
      }
      const float s = rsqrtf(squares / channels + eps);
      scale[threadIdx.x] = s;
      projection[threadIdx.x] = dot * s * s * s / channels;
    }
    __syncthreads();
    T* target = dx + first * channels;
    const T* residual = addend != nullptr ? addend + first * channels : nullptr;
    for (int i0 = threadIdx.x; i0 < count; i0 += kAtOnce * kTileRows) {
      T rest[kAtOnce];
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) {
        const int i = i0 + j * kTileRows;
        rest[j] = load_if(residual != nullptr && i < count, residual + i);
      }
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) {
        const int i = i0 + j * kTileRows;
        if (i >= count) break;
        const int row = row_of(i, reciprocal), c = i - row * channels, at = row * stride + c;
        const float through_norm = scale[row] * weight[c] * dout_tile[at] - x_tile[at] * projection[row];
        target[i] = from_float<T>(through_norm + to_float(rest[j]));
      }
    }
    if (strand < strands) {
      for (int row = strand; row < tile_rows; row += strands) {
        sum += dout_tile[row * stride + channel] * x_tile[row * stride + channel] * scale[row];
      }
    }
  }
  __syncthreads();
  shared[threadIdx.x] = sum;  // thread = strand * channels + channel
  __syncthreads();
  if (threadIdx.x < channels) {
    float total = 0.0f;
    for (int s = 0; s < strands; ++s) total += shared[s * channels + threadIdx.x];
    partials[int64_t{blockIdx.x} * channels + threadIdx.x] = total;
  }
}

// One warp per kRows neighbouring rows. Each warp adds its share of dweight in its own shared row of `channels` floats.
// Rows too long for shared memory run with one warp per block, which then adds straight into its row of partials.
template <typename T, int kRows>
__global__ void __launch_bounds__(kBlock)
    rms_norm_grad_kernel(const T* __restrict__ dout, const T* __restrict__ x, const float* __restrict__ weight,
                         const T* addend, T* dx, float* partials, int64_t rows, int64_t channels, float eps,
                         bool in_shared) {
  extern __shared__ float shared[];
  constexpr int kUnroll = kRows == 1 ? 4 : 2;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
  float* block_partials = partials + int64_t{blockIdx.x} * channels;
  float* sums = in_shared ? shared + warp * channels : block_partials;
  for (int64_t c = lane; c < channels; c += kWarp) sums[c] = 0.0f;
  const int64_t step = int64_t{gridDim.x} * warps * kRows;
  for (int64_t first = (int64_t{blockIdx.x} * warps + warp) * kRows; first < rows; first += step) {
    const int count = static_cast<int>(min(int64_t{kRows}, rows - first));
    const int64_t base = first * channels;
    float scale[kRows] = {}, projection[kRows] = {};
#pragma unroll kUnroll
    for (int64_t c = lane; c < channels; c += kWarp) {
      const float weight_c = weight[c];
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const float value = r < count ? to_float(x[base + r * channels + c]) : 0.0f;
        const float upstream = r < count ? to_float(dout[base + r * channels + c]) : 0.0f;
        scale[r] += value * value;
        projection[r] += weight_c * upstream * value;
      }
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      scale[r] = rsqrtf(warp_sum(scale[r]) / channels + eps);
      projection[r] = warp_sum(projection[r]) * scale[r] * scale[r] * scale[r] / channels;
    }
    for (int64_t c0 = lane; c0 < channels; c0 += kUnroll * kWarp) {
      T rest[kUnroll][kRows];
#pragma unroll
      for (int i = 0; i < kUnroll * kRows; ++i) {
        const int u = i / kRows, r = i % kRows;
        const bool exists = addend != nullptr && r < count && c0 + u * kWarp < channels;
        rest[u][r] = load_if(exists, addend + base + r * channels + c0 + u * kWarp);
      }
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        const int64_t c = c0 + u * kWarp;
        if (c >= channels) break;
        const float weight_c = weight[c];
        float sum = 0.0f;
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
          if (r >= count) continue;
          const int64_t at = base + r * channels + c;
          const float value = to_float(x[at]), scaled = to_float(dout[at]) * scale[r];
          dx[at] = from_float<T>(weight_c * scaled - value * projection[r] + to_float(rest[u][r]));
          sum += scaled * value;
        }
        sums[c] += sum;
      }
    }
  }
  if (!in_shared) return;
  __syncthreads();
  for (int64_t c = threadIdx.x; c < channels; c += blockDim.x) {
    float total = 0.0f;
    for (int w = 0; w < warps; ++w) total += shared[w * channels + c];
    block_partials[c] = total;
  }
}

unsigned blocks_for(int64_t groups, int64_t limit) { return static_cast<unsigned>(std::min(groups, limit)); }

template <typename T>
void launch(const RmsNormArgs& args, Stream stream) {
  const T* x = static_cast<const T*>(args.x);
  const float* weight = static_cast<const float*>(args.weight);
  T* out = static_cast<T*>(args.out);
  const float eps = static_cast<float>(args.eps);
  const int64_t rows = args.rows, channels = args.channels;
  if (channels <= kSmallChannels) {
    const size_t shared_bytes = sizeof(float) * static_cast<size_t>(kTileRows * ((channels | 1) + 1));
    rms_norm_tile_kernel<T><<<blocks_for(ceil_div(rows, kTileRows), kMaxGrid), kTileRows, shared_bytes, raw(stream)>>>(
        x, weight, out, rows, static_cast<int>(channels), eps);
    PM_CHECK_LAUNCH("rms_norm");
  } else if (channels <= kManyRowsChannels) {
    rms_norm_kernel<T, kManyRows><<<blocks_for(ceil_div(rows, kWarps * kManyRows), kMaxGrid), kBlock, 0, raw(stream)>>>(
        x, weight, out, rows, channels, eps);
    PM_CHECK_LAUNCH("rms_norm");
  } else {
    rms_norm_kernel<T, 1>
        <<<blocks_for(ceil_div(rows, kWarps), kMaxGrid), kBlock, 0, raw(stream)>>>(x, weight, out, rows, channels, eps);
    PM_CHECK_LAUNCH("rms_norm");
  }
}

template <typename T>
void launch_grad(const RmsNormGradArgs& args, Stream stream) {
  const T* dout = static_cast<const T*>(args.dout);
  const T* x = static_cast<const T*>(args.x);
  const float* weight = static_cast<const float*>(args.weight);
  const T* addend = static_cast<const T*>(args.addend);
  T* dx = static_cast<T*>(args.dx);
  const float eps = static_cast<float>(args.eps);
  const int64_t rows = args.rows, channels = args.channels;
  const bool tiles = channels <= kSmallChannels, many_rows = channels <= kManyRowsChannels;
  const int64_t warps = std::clamp<int64_t>(kSharedFloats / channels, 1, kWarps);
  const int64_t block_rows = tiles ? kTileRows : many_rows ? warps * kManyRows : warps;
  const unsigned blocks = blocks_for(ceil_div(rows, block_rows), kGradGrid);
  const Scratch<float> partials(stream, int64_t{blocks} * channels);
  if (tiles) {
    const size_t shared_bytes = sizeof(float) * static_cast<size_t>(2 * kTileRows * ((channels | 1) + 1));
    rms_norm_grad_tile_kernel<T><<<blocks, kTileRows, shared_bytes, raw(stream)>>>(
        dout, x, weight, addend, dx, partials.get(), rows, static_cast<int>(channels), eps);
    PM_CHECK_LAUNCH("rms_norm_grad");
  } else {
    const bool in_shared = channels <= kSharedFloats;
    const size_t shared_bytes = in_shared ? sizeof(float) * static_cast<size_t>(warps * channels) : 0;
    const auto kernel = many_rows ? rms_norm_grad_kernel<T, kManyRows> : rms_norm_grad_kernel<T, 1>;
    kernel<<<blocks, static_cast<unsigned>(warps * kWarp), shared_bytes, raw(stream)>>>(
        dout, x, weight, addend, dx, partials.get(), rows, channels, eps, in_shared);
    PM_CHECK_LAUNCH("rms_norm_grad");
  }
  column_sum(partials.get(), blocks, channels, static_cast<float*>(args.dweight), stream);
}

}  // namespace

void rms_norm(const RmsNormArgs& args, Stream stream) {
  if (args.rows == 0) return;
  dispatch_float(args.dtype, [&]<typename T>() { launch<T>(args, stream); });
}

void rms_norm_grad(const RmsNormGradArgs& args, Stream stream) {
  if (args.rows == 0) return column_sum(nullptr, 0, args.channels, static_cast<float*>(args.dweight), stream);
  dispatch_float(args.dtype, [&]<typename T>() { launch_grad<T>(args, stream); });
}

}  // namespace pm::cuda
