// Mean over the regions of an image (engine/ops/token/region_mean.h).
//
// forward : launch : one block of 32 channels x 32 strands per image, chunk of kChunk regions and 32 channels; each strand sums
//                    every 32nd region of its chunk in double, then the strands are added in order. Up to kChunk regions that
//                    is all; beyond, the chunks leave double partial sums and a second launch of the same kernel adds them.
//                    1 block for one region of 32 channels, 12 for 400 of 384, 4 692 for 1e5 of 384.
// gradient: launch : one block of kGradBlock threads per region.
// traffic : one read (forward) or one write (gradient) of x; 400 regions of 384 channels in float32: 0.6 MB, bound by the launch.
// numerics: sums in double. deterministic: the order depends on the shape alone.
#include "cuda/core/launch.cuh"
#include "cuda/core/reduce.cuh"
#include "engine/ops/token/region_mean.h"

namespace pm::cuda {
namespace {

constexpr int kStrands = 32;
constexpr int64_t kChunk = 1024;  // regions of a block
constexpr int kGradBlock = 128;

__device__ __forceinline__ double load_double(double v) { return v; }
template <typename T>
__device__ __forceinline__ double load_double(T v) {
  return static_cast<double>(to_float(v));
}
template <typename T>
__device__ __forceinline__ T store_double(double v) {
  if constexpr (sizeof(T) == sizeof(double)) {
    return v;
  } else {
    return from_float<T>(static_cast<float>(v));
  }
}

// out[b, chunk] = sum over the rows of the chunk / divisor. x: (batch, rows, channels); out: (batch, chunks, channels)
template <typename In, typename Out>
__global__ void __launch_bounds__(kWarp* kStrands)
    sum_rows_kernel(const In* __restrict__ x, int64_t rows, int64_t channels, int64_t chunks, int64_t channel_tiles,
                    double divisor, Out* __restrict__ out) {
  __shared__ double strand_sum[kStrands][kWarp];
  const int64_t tile = blockIdx.x % channel_tiles, piece = blockIdx.x / channel_tiles;
  const int64_t b = piece / chunks, chunk = piece - b * chunks;
  const int64_t channel = tile * kWarp + threadIdx.x;
  const int64_t end = min(rows, (chunk + 1) * kChunk);
  double sum = 0.0;
  if (channel < channels) {
    for (int64_t row = chunk * kChunk + threadIdx.y; row < end; row += kStrands) {
      sum += load_double(x[(b * rows + row) * channels + channel]);
    }
  }
  strand_sum[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y == 0 && channel < channels) {
    for (int strand = 1; strand < kStrands; ++strand) sum += strand_sum[strand][threadIdx.x];
    out[piece * channels + channel] = store_double<Out>(sum / divisor);
  }
}

template <typename In, typename Out>
void sum_rows(const In* x, int64_t batch, int64_t rows, int64_t channels, double divisor, Out* out, Stream stream) {
  const int64_t chunks = ceil_div(rows, kChunk), channel_tiles = ceil_div(channels, kWarp);
  const dim3 block(kWarp, kStrands);
  sum_rows_kernel<In, Out><<<static_cast<unsigned>(batch * chunks * channel_tiles), block, 0, raw(stream)>>>(
      x, rows, channels, chunks, channel_tiles, divisor, out);
  PM_CHECK_LAUNCH("region_mean");
}

// Sums `x` chunk by chunk until one row per image is left.
template <typename In, typename Out>
void mean_rows(const In* x, const RegionMeanArgs& args, int64_t rows, Out* out, Stream stream) {
  const auto divisor = static_cast<double>(args.n_regions);
  const int64_t chunks = ceil_div(rows, kChunk);
  if (chunks == 1) return sum_rows(x, args.batch, rows, args.channels, divisor, out, stream);
  Scratch<double> partial(stream, args.batch * chunks * args.channels);
  sum_rows(x, args.batch, rows, args.channels, 1.0, partial.get(), stream);
  mean_rows(partial.get(), args, chunks, out, stream);
}

// dout: (batch, channels); dx: (batch, n_regions, channels)
template <typename T>
__global__ void __launch_bounds__(kGradBlock)
    region_mean_grad_kernel(const T* __restrict__ dout, T* __restrict__ dx, int64_t n_regions, int64_t channels) {
  const int64_t row = blockIdx.x;
  const T* image = dout + row / n_regions * channels;
  const float divisor = static_cast<float>(n_regions);
  for (int64_t c = threadIdx.x; c < channels; c += kGradBlock) {
    dx[row * channels + c] = from_float<T>(to_float(image[c]) / divisor);
  }
}

}  // namespace

void region_mean(const RegionMeanArgs& args, Stream stream) {
  if (args.batch * args.channels == 0) return;
  dispatch_float(args.dtype, [&]<typename T>() {
    mean_rows(static_cast<const T*>(args.x), args, args.n_regions, static_cast<T*>(args.out), stream);
  });
}

void region_mean_grad(const RegionMeanGradArgs& args, Stream stream) {
  const int64_t rows = args.batch * args.n_regions;
  if (rows * args.channels == 0) return;
  dispatch_float(args.dtype, [&]<typename T>() {
    region_mean_grad_kernel<T><<<static_cast<unsigned>(rows), kGradBlock, 0, raw(stream)>>>(
        static_cast<const T*>(args.dout), static_cast<T*>(args.dx), args.n_regions, args.channels);
    PM_CHECK_LAUNCH("region_mean_grad");
  });
}

}  // namespace pm::cuda
