// Pixels to tokens and back, and the gradient of the CLS token (engine/ops/token/serialize.h).
//
// serialize  : launch  : block of kBlock threads per kTile elements of one window, window * tiles blocks in x: 1 for a
//                        region of 16 x 16, 14 800 for 20 x 20 regions of 224 x 224. One 64-bit division per block;
//                        offsets inside a window are 32-bit; bytes are normalised through a table in shared memory.
//              traffic : reads 1 or 4 bytes, writes sizeof(T) per value; stores run along the tokens (coalesced), loads
//                        along the rows of the window. Bandwidth-bound; floor at 4.25 TB/s for 20 x 20 regions of 224 x 224
//                        from u8 to bf16: 181 MB, 43 us.
// deserialize: launch  : block of kBlock threads per kBlock pixels of one image row; a thread moves the 3 values of one
//                        pixel.
//              traffic : reads sizeof(T), writes 4 bytes per value; floor for the same slide from bf16: 361 MB, 85 us.
// cls_grad   : launch  : one block of kSumBlock threads per channel, each thread strides over regions in double, then a
//                        tree.
//              traffic : one 32-byte sector per region; a latency of a few microseconds.
// numerics   : float maths; sums over regions in double. deterministic: fixed order, no atomics.
#include "cuda/core/launch.cuh"
#include "cuda/core/reduce.cuh"
#include "engine/core/fast_divisor.h"
#include "engine/ops/token/serialize.h"

namespace pm::cuda {
namespace {

constexpr int kChannels = kPixelChannels;
constexpr int kTile = 16 * kBlock;  // elements of a serialize block: several times the table that it fills first
constexpr int kSumBlock = 1024;

// Normalised values of all bytes, so that each pixel costs a lookup instead of a division: the same bits.
using PixelTable = float[kChannels][256];

__device__ __forceinline__ float read_pixel(const uint8_t* image, const WindowGrid& grid, const PixelTable& table,
                                            int64_t b, int64_t row, int64_t col, int channel) {
  return table[channel][image[((b * grid.height + row) * grid.width + col) * kChannels + channel]];
}
__device__ __forceinline__ float read_pixel(const float* image, const WindowGrid& grid, const PixelTable&, int64_t b,
                                            int64_t row, int64_t col, int channel) {
  return image[((b * kChannels + channel) * grid.height + row) * grid.width + col];
}

// image: u8 (batch, height, width, 3) or float (batch, 3, height, width); tokens: (batch, n_regions, region_len, 3)
template <typename In, typename T>
__global__ void __launch_bounds__(kBlock)
    serialize_kernel(const In* __restrict__ image, const float* __restrict__ cls_token, T* __restrict__ tokens,
                     WindowGrid grid, FastDivisor by_size, int64_t tiles) {
  __shared__ PixelTable table;
  if constexpr (sizeof(In) == 1) {
    for (int i = static_cast<int>(threadIdx.x); i < kChannels * 256; i += kBlock) {
      table[i / 256][i % 256] = normalised_pixel(static_cast<float>(i % 256) / 255.0f, i / 256);
    }
    __syncthreads();
  }
  const int64_t window = blockIdx.x / tiles;
  const int tile = static_cast<int>(blockIdx.x - window * tiles);
  const int64_t n_regions = grid.n_regions();
  const int64_t b = window / n_regions;
  const auto corner = scan_cell(grid.scan, grid.cols(), window - b * n_regions);
  const int64_t first_row = corner.row * grid.region_size, first_col = corner.col * grid.region_size;
  const int size = static_cast<int>(grid.region_size);
  const int cls = cls_index_of(size * size);
  const int elements = (size * size + 1) * kChannels;
  const int end = min(elements, (tile + 1) * kTile);
  T* out = tokens + window * elements;
  for (int i = tile * kTile + static_cast<int>(threadIdx.x); i < end; i += kBlock) {
    const int token = i / kChannels;
    const int channel = i - token * kChannels;
    float value = 0.0f;
    if (token == cls) {
      value = cls_token[channel];
    } else {
      const int position = position_of_token(token, cls);
      const int line = by_size.quotient(position), along = position - line * size;
      const bool backwards = grid.scan == ScanOrder::boustrophedon && line % 2 == 1;
      const int64_t row = first_row + line, col = first_col + (backwards ? size - 1 - along : along);
      const bool inside = row < grid.height && col < grid.width;
      value = inside ? read_pixel(image, grid, table, b, row, col, channel) : normalised_pixel(1.0f, channel);
    }
    out[i] = from_float<T>(value);
  }
}

// tokens: (batch, n_regions, region_len, 3); image: (batch, 3, height, width)
template <typename T>
__global__ void __launch_bounds__(kBlock)
    deserialize_kernel(const T* __restrict__ tokens, float* __restrict__ image, WindowGrid grid, int64_t tiles) {
  const int64_t line = blockIdx.x / tiles;
  const int64_t col = (blockIdx.x - line * tiles) * kBlock + threadIdx.x;
  if (col >= grid.width) return;
  const int64_t b = line / grid.height, row = line - b * grid.height;
  const int size = static_cast<int>(grid.region_size);
  const int64_t window_row = row / size, window_col = col / size;
  const int64_t window = b * grid.n_regions() + scan_position(grid.scan, grid.cols(), window_row, window_col);
  const int position = scan_position(grid.scan, size, static_cast<int>(row - window_row * size),
                                     static_cast<int>(col - window_col * size));
  const int token = token_of_position(position, cls_index_of(size * size));
  const T* values = tokens + (window * grid.region_len() + token) * kChannels;
#pragma unroll
  for (int channel = 0; channel < kChannels; ++channel) {
    image[((b * kChannels + channel) * grid.height + row) * grid.width + col] = to_float(values[channel]);
  }
}

// dtokens: (regions, region_len, 3); dcls_token: (3)
template <typename T>
__global__ void __launch_bounds__(kSumBlock)
    serialize_cls_grad_kernel(const T* __restrict__ dtokens, float* __restrict__ dcls_token, int64_t regions,
                              int64_t region_len) {
  __shared__ double shared[kSumBlock / kWarp];
  const int channel = static_cast<int>(blockIdx.x);
  const int64_t cls = cls_index_of(region_len - 1);
  double sum = 0.0;
  for (int64_t region = threadIdx.x; region < regions; region += kSumBlock) {
    sum += static_cast<double>(to_float(dtokens[(region * region_len + cls) * kChannels + channel]));
  }
  sum = block_sum<kSumBlock>(sum, shared);
  if (threadIdx.x == 0) dcls_token[channel] = static_cast<float>(sum);
}

template <typename In, typename T>
void launch_serialize(const SerializeArgs& args, Stream stream) {
  const int64_t tiles = ceil_div(args.grid.region_len() * kChannels, kTile);
  const int64_t blocks = args.grid.batch * args.grid.n_regions() * tiles;
  serialize_kernel<In, T><<<static_cast<unsigned>(blocks), kBlock, 0, raw(stream)>>>(
      static_cast<const In*>(args.image), static_cast<const float*>(args.cls_token), static_cast<T*>(args.tokens),
      args.grid, FastDivisor(static_cast<int>(args.grid.region_size)), tiles);
  PM_CHECK_LAUNCH("serialize");
}

}  // namespace

void serialize(const SerializeArgs& args, Stream stream) {
  if (args.grid.batch == 0) return;
  dispatch_float(args.dtype, [&]<typename T>() {
    args.bytes ? launch_serialize<uint8_t, T>(args, stream) : launch_serialize<float, T>(args, stream);
  });
}

void deserialize(const DeserializeArgs& args, Stream stream) {
  if (args.grid.batch == 0) return;
  const int64_t tiles = ceil_div(args.grid.width, kBlock);
  const int64_t blocks = args.grid.batch * args.grid.height * tiles;
  dispatch_float(args.dtype, [&]<typename T>() {
    deserialize_kernel<T><<<static_cast<unsigned>(blocks), kBlock, 0, raw(stream)>>>(
        static_cast<const T*>(args.tokens), static_cast<float*>(args.image), args.grid, tiles);
    PM_CHECK_LAUNCH("deserialize");
  });
}

void serialize_cls_grad(const SerializeClsGradArgs& args, Stream stream) {
  dispatch_float(args.dtype, [&]<typename T>() {
    serialize_cls_grad_kernel<T><<<kChannels, kSumBlock, 0, raw(stream)>>>(
        static_cast<const T*>(args.dtokens), static_cast<float*>(args.dcls_token), args.regions, args.region_len);
    PM_CHECK_LAUNCH("serialize_cls_grad");
  });
}

}  // namespace pm::cuda
