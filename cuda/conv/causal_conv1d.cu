// out[t] = silu(bias + sum_j weight_j * x[t - j]), tap j looking j tokens back (ahead in reverse), silu(v) = v * sigmoid(v)
// dpre = dout * silu'(pre);  dx[t] = sum_j weight_j * dpre[t + j];  dweight_j = sum dpre[t] * x[t - j];  dbias = sum dpre[t]
// x, out, dout, dx: (batch, seq_len, d_inner); weight, dweight: (d_inner, 1, d_conv), tap j at d_conv - 1 - j
//
// Positions count along the walk: position p is token p, in reverse token seq_len - 1 - p. On positions both directions are
// the same causal convolution; only the step in memory from one position to the next changes its sign.
//
// launch  : a block takes a tile of positions of one sequence times a tile of channels; channels run fastest over its threads
//           and `strands` threads share a channel. blockIdx.x = position tile * channel tiles + channel tile.
//           4 taps and 32 channels or more: rolling kernels. A thread walks a run of positions with the last inputs in
//             registers; channel tiles of 33 to 64. Forward 64 to 128 positions per tile: at 1e6 tokens of 32 channels
//             7,813 blocks, at 50 tokens of 768 channels 12.
//           else: forward lets neighbouring threads take neighbouring elements and reads the taps through L1 (12 bytes wide
//             rows of 6 bf16 channels still make full cache lines); the gradient stages its tile in shared memory.
// traffic : forward 1 read + 1 write, gradient 2 reads + 1 write of n = batch * seq_len * d_inner elements, plus 3 to 10 % of
//           halo through L2. Bandwidth-bound: floor at 4.25 TB/s 1.9 us and 2.8 us per 1e6 float32.
// numerics: float maths; sigmoid by __expf and __fdividef, relative error about 1e-6 for |pre| below 10, exact limits beyond.
//           dweight and dbias: a thread adds its positions in float, a block its strands in order, column_sum the blocks in
//           double. Grid sizes are constants, so the bits are the same in every run and on every GPU.
#include "cuda/core/reduce.cuh"
#include "engine/ops/conv/causal_conv1d.h"

namespace pm::cuda {
namespace {

constexpr int kRollingTaps = 4;
constexpr int kRollingChannels = 32;  // from here on rolling kernels
constexpr int kRollingTile = 64;      // most channels of a tile in rolling kernels
constexpr int kRollingRun = 16;       // positions per thread, forward
constexpr int kRollingGradRun = 29;   // positions per thread, gradient: with the halo of 3 it makes 8 groups of 4
constexpr int kDirectTile = 256;      // most channels of a tile of the direct kernel
constexpr int kDirectRun = 8;
constexpr int kStagedTile = 32;  // most channels of a staged tile
constexpr int kStagedRun = 8;
constexpr int64_t kGradBlocks = 132 * 16;
constexpr int64_t kMostBlocks = 0x7fffffff;  // of a grid
constexpr int kGroup = 4;                    // positions whose loads a rolling thread issues together

struct Tiling {
  int64_t seq_len, d_inner;
  unsigned sequence_tiles;  // position tiles of one sequence
  unsigned tiles;           // position tiles of the batch; tiles * channel_tiles fits 31 bits
  int channel_tiles;
  int width;      // channels of a tile
  int strands;    // threads that share a channel
  int positions;  // of a tile
  int d_conv;
  bool reverse;
};

Tiling make_tiling(int64_t batch, int64_t seq_len, int64_t d_inner, int64_t d_conv, bool reverse, int most_channels,
                   int run) {
  Tiling t{};
  t.seq_len = seq_len;
  t.d_inner = d_inner;
  t.channel_tiles = static_cast<int>(ceil_div(d_inner, most_channels));
  t.width = static_cast<int>(ceil_div(d_inner, t.channel_tiles));
  t.strands = kBlock / t.width;
  t.positions = t.strands * run;
  const int64_t sequence_tiles = ceil_div(seq_len, t.positions), tiles = batch * sequence_tiles;
  if (tiles * t.channel_tiles > kMostBlocks) throw ShapeError("causal_conv1d: too many tokens for one launch");
  t.sequence_tiles = static_cast<unsigned>(sequence_tiles);
  t.tiles = static_cast<unsigned>(tiles);
  t.d_conv = static_cast<int>(d_conv);
  t.reverse = reverse;
  return t;
}

// A thread's place: its channel and where position 0 of its sequence lies.
struct Place {
  int64_t channel;
  int strand;
  bool active;  // false for threads beyond the last strand or channel
};

__device__ __forceinline__ Place place_of(const Tiling& t, unsigned channel_tile) {
  const int strand = threadIdx.x / t.width;
  const int64_t channel = int64_t{channel_tile} * t.width + threadIdx.x % t.width;
  return {channel, strand, strand < t.strands && channel < t.d_inner};
}

__device__ __forceinline__ int64_t step_of(const Tiling& t) { return t.reverse ? -t.d_inner : t.d_inner; }
__device__ __forceinline__ int64_t origin_of(const Tiling& t, unsigned tile, int64_t channel) {
  return (int64_t{tile / t.sequence_tiles} * t.seq_len + (t.reverse ? t.seq_len - 1 : 0)) * t.d_inner + channel;
}
__device__ __forceinline__ int64_t first_position(const Tiling& t, unsigned tile) {
  return int64_t{tile % t.sequence_tiles} * t.positions;
}

// taps[j] is the weight of the input j positions back, zero beyond d_conv.
template <int kTaps>
__device__ __forceinline__ void load_taps(const float* __restrict__ weight, int64_t channel, int d_conv,
                                          float (&taps)[kTaps]) {
#pragma unroll
  for (int j = 0; j < kTaps; ++j) taps[j] = j < d_conv ? weight[channel * d_conv + d_conv - 1 - j] : 0.0f;
}

__device__ __forceinline__ float sigmoid(float v) { return __fdividef(1.0f, 1.0f + __expf(-v)); }
__device__ __forceinline__ float silu_grad(float v) {
  const float s = sigmoid(v);
  return s * (1.0f + v * (1.0f - s));
}

// Any width and number of taps: thread (strand, channel) takes positions strand, strand + strands, ... of the tile.
template <typename T, int kTaps>
__global__ void __launch_bounds__(kBlock)
    causal_conv1d_kernel(const T* __restrict__ x, const float* __restrict__ weight, const float* __restrict__ bias,
                         T* __restrict__ out, Tiling t) {
  const unsigned tile = blockIdx.x / t.channel_tiles;
  const Place place = place_of(t, blockIdx.x % t.channel_tiles);
  if (!place.active) return;
  float taps[kTaps];
  load_taps(weight, place.channel, t.d_conv, taps);
  const float offset = bias[place.channel];
  const int64_t step = step_of(t), origin = origin_of(t, tile, place.channel);
#pragma unroll 4
  for (int i = 0; i < kDirectRun; ++i) {
    const int64_t position = first_position(t, tile) + place.strand + i * t.strands;
    if (position >= t.seq_len) continue;
    const int64_t at = origin + position * step;
    float pre = offset;
#pragma unroll
    for (int j = 0; j < kTaps; ++j) {
      if (j < t.d_conv && j <= position) pre += taps[j] * to_float(x[at - j * step]);
    }
    out[at] = from_float<T>(pre * sigmoid(pre));
  }
}

// Four taps: thread (strand, channel) walks kRollingRun neighbouring positions.
template <typename T>
__global__ void __launch_bounds__(kBlock)
    causal_conv1d_rolling_kernel(const T* __restrict__ x, const float* __restrict__ weight,
                                 const float* __restrict__ bias, T* __restrict__ out, Tiling t) {
  constexpr int kHalo = kRollingTaps - 1;
  const unsigned tile = blockIdx.x / t.channel_tiles;
  const Place place = place_of(t, blockIdx.x % t.channel_tiles);
  const int64_t first = first_position(t, tile) + place.strand * kRollingRun;
  if (!place.active || first >= t.seq_len) return;
  float taps[kRollingTaps];
  load_taps(weight, place.channel, kRollingTaps, taps);
  const float offset = bias[place.channel];
  const int64_t step = step_of(t), start = origin_of(t, tile, place.channel) + first * step;
  const int count = static_cast<int>(min(int64_t{kRollingRun}, t.seq_len - first));
  float window[kHalo + kGroup];  // the inputs of the group and of the halo before it
#pragma unroll
  for (int k = 0; k < kHalo; ++k) window[k] = first >= kHalo - k ? to_float(x[start - (kHalo - k) * step]) : 0.0f;
#pragma unroll
  for (int i = 0; i < kRollingRun; i += kGroup) {
#pragma unroll
    for (int k = 0; k < kGroup; ++k) window[kHalo + k] = i + k < count ? to_float(x[start + (i + k) * step]) : 0.0f;
#pragma unroll
    for (int k = 0; k < kGroup; ++k) {
      float pre = offset;
#pragma unroll
      for (int j = 0; j < kRollingTaps; ++j) pre += taps[j] * window[kHalo + k - j];
      if (i + k < count) out[start + (i + k) * step] = from_float<T>(pre * sigmoid(pre));
    }
#pragma unroll
    for (int k = 0; k < kHalo; ++k) window[k] = window[kGroup + k];
  }
}

// Adds a value over the strands of each channel and writes one row of partial sums: partials[channel * columns + column].
__device__ __forceinline__ void store_partial(float value, const Tiling& t, const Place& place, float* shared,
                                              float* partials, int columns, int column) {
  __syncthreads();
  shared[threadIdx.x] = value;  // thread = strand * width + channel of the tile
  __syncthreads();
  if (place.strand != 0 || !place.active) return;
  float total = 0.0f;
  for (int s = 0; s < t.strands; ++s) total += shared[s * t.width + threadIdx.x];
  partials[place.channel * columns + column] = total;
}

// dweight_partials: (row blocks, d_inner, d_conv); dbias_partials: (row blocks, d_inner). Block = row block * channel tiles +
// channel tile; a row block takes every row_blocks-th position tile.
template <typename T, int kTaps>
__global__ void __launch_bounds__(kBlock)
    causal_conv1d_grad_kernel(const T* __restrict__ dout, const T* __restrict__ x, const float* __restrict__ weight,
                              const float* __restrict__ bias, T* __restrict__ dx, float* __restrict__ dweight_partials,
                              float* __restrict__ dbias_partials, Tiling t, unsigned row_blocks) {
  __shared__ float x_tile[kStagedRun * kBlock + 2 * (kTaps - 1) * kStagedTile];  // (positions + 2 halos, width)
  __shared__ float dpre_tile[kStagedRun * kBlock + (kTaps - 1) * kStagedTile];   // (positions + halo, width)
  const unsigned row_block = blockIdx.x / t.channel_tiles;
  const Place place = place_of(t, blockIdx.x % t.channel_tiles);
  const int lane = threadIdx.x % t.width, halo = t.d_conv - 1;
  float taps[kTaps] = {}, dtaps[kTaps] = {}, dbias = 0.0f;
  if (place.active) load_taps(weight, place.channel, t.d_conv, taps);
  const float offset = place.active ? bias[place.channel] : 0.0f;
  const int start = place.active ? place.strand : 1 << 30;  // idle threads only meet the barriers
  const int64_t step = step_of(t);
  for (unsigned tile = row_block; tile < t.tiles; tile += row_blocks) {
    const int64_t first = first_position(t, tile), origin = origin_of(t, tile, place.channel);
    __syncthreads();  // everybody is done with the tiles before
    for (int q = start; q < t.positions + 2 * halo; q += t.strands) {
      const int64_t position = first + q - halo;
      const bool inside = position >= 0 && position < t.seq_len;
      x_tile[q * t.width + lane] = inside ? to_float(x[origin + position * step]) : 0.0f;
    }
    __syncthreads();
    for (int q = start; q < t.positions + halo; q += t.strands) {
      const int64_t position = first + q;
      float dpre = 0.0f;
      if (position < t.seq_len) {
        float pre = offset;
#pragma unroll
        for (int j = 0; j < kTaps; ++j) {
          if (j <= halo) pre += taps[j] * x_tile[(q + halo - j) * t.width + lane];
        }
        dpre = to_float(dout[origin + position * step]) * silu_grad(pre);
      }
      dpre_tile[q * t.width + lane] = dpre;
      if (q >= t.positions) continue;  // the next tile's own
      dbias += dpre;
#pragma unroll
      for (int j = 0; j < kTaps; ++j) {
        if (j <= halo) dtaps[j] += dpre * x_tile[(q + halo - j) * t.width + lane];
      }
    }
    __syncthreads();
    for (int q = start; q < t.positions && first + q < t.seq_len; q += t.strands) {
      float sum = 0.0f;
#pragma unroll
      for (int j = 0; j < kTaps; ++j) {
        if (j <= halo) sum += taps[j] * dpre_tile[(q + j) * t.width + lane];
      }
      dx[origin + (first + q) * step] = from_float<T>(sum);
    }
  }
#pragma unroll
  for (int j = 0; j < kTaps; ++j) {
    if (j <= halo) {
      store_partial(dtaps[j], t, place, x_tile, dweight_partials + int64_t{row_block} * t.d_inner * t.d_conv, t.d_conv,
                    halo - j);
    }
  }
  store_partial(dbias, t, place, x_tile, dbias_partials + int64_t{row_block} * t.d_inner, 1, 0);
}

// The same for four taps: thread (strand, channel) walks kRollingGradRun positions and the halo after them, one group at a
// time; dx of a position follows three positions behind dpre.
template <typename T>
__global__ void __launch_bounds__(kBlock)
    causal_conv1d_rolling_grad_kernel(const T* __restrict__ dout, const T* __restrict__ x,
                                      const float* __restrict__ weight, const float* __restrict__ bias,
                                      T* __restrict__ dx, float* __restrict__ dweight_partials,
                                      float* __restrict__ dbias_partials, Tiling t, unsigned row_blocks) {
  constexpr int kHalo = kRollingTaps - 1, kRun = kRollingGradRun;
  static_assert((kRun + kHalo) % kGroup == 0 && kHalo < kGroup);
  __shared__ float strand_sums[kBlock];
  const unsigned row_block = blockIdx.x / t.channel_tiles;
  const Place place = place_of(t, blockIdx.x % t.channel_tiles);
  float taps[kRollingTaps] = {}, dtaps[kRollingTaps] = {}, dbias = 0.0f;
  if (place.active) load_taps(weight, place.channel, kRollingTaps, taps);
  const float offset = place.active ? bias[place.channel] : 0.0f;
  const int64_t step = step_of(t);
  for (unsigned tile = row_block; place.active && tile < t.tiles; tile += row_blocks) {
    const int64_t first = first_position(t, tile) + place.strand * kRun;
    if (first >= t.seq_len) continue;
    const int64_t start = origin_of(t, tile, place.channel) + first * step;
    const int count = static_cast<int>(min(int64_t{kRun + kHalo}, t.seq_len - first));  // positions to read
    float inputs[kHalo + kGroup], dpre[kHalo + kGroup] = {};
#pragma unroll
    for (int k = 0; k < kHalo; ++k) inputs[k] = first >= kHalo - k ? to_float(x[start - (kHalo - k) * step]) : 0.0f;
#pragma unroll 2
    for (int i = 0; i < kRun + kHalo; i += kGroup) {
      float upstream[kGroup];
#pragma unroll
      for (int k = 0; k < kGroup; ++k) {
        const bool inside = i + k < count;
        inputs[kHalo + k] = inside ? to_float(x[start + (i + k) * step]) : 0.0f;
        upstream[k] = inside ? to_float(dout[start + (i + k) * step]) : 0.0f;
      }
#pragma unroll
      for (int k = 0; k < kGroup; ++k) {
        float pre = offset;
#pragma unroll
        for (int j = 0; j < kRollingTaps; ++j) pre += taps[j] * inputs[kHalo + k - j];
        const float value = upstream[k] * silu_grad(pre);
        dpre[kHalo + k] = value;
        const float own = i + k < kRun ? value : 0.0f;  // the halo is the next run's own
        dbias += own;
#pragma unroll
        for (int j = 0; j < kRollingTaps; ++j) dtaps[j] += own * inputs[kHalo + k - j];
        const int target = i + k - kHalo;  // its last dpre has just been made
        if (target < 0 || target >= count) continue;
        float sum = 0.0f;
#pragma unroll
        for (int j = 0; j < kRollingTaps; ++j) sum += taps[j] * dpre[k + j];
        dx[start + target * step] = from_float<T>(sum);
      }
#pragma unroll
      for (int k = 0; k < kHalo; ++k) {
        inputs[k] = inputs[kGroup + k];
        dpre[k] = dpre[kGroup + k];
      }
    }
  }
  float* block_dweight = dweight_partials + int64_t{row_block} * t.d_inner * kRollingTaps;
#pragma unroll
  for (int j = 0; j < kRollingTaps; ++j) {
    store_partial(dtaps[j], t, place, strand_sums, block_dweight, kRollingTaps, kHalo - j);
  }
  store_partial(dbias, t, place, strand_sums, dbias_partials + int64_t{row_block} * t.d_inner, 1, 0);
}

bool rolls(int64_t d_inner, int64_t d_conv) { return d_conv == kRollingTaps && d_inner >= kRollingChannels; }

template <typename T>
void launch(const CausalConv1dArgs& args, Stream stream) {
  const bool rolling = rolls(args.d_inner, args.d_conv);
  const Tiling t = make_tiling(args.batch, args.seq_len, args.d_inner, args.d_conv, args.reverse,
                               rolling ? kRollingTile : kDirectTile, rolling ? kRollingRun : kDirectRun);
  const auto kernel = rolling            ? causal_conv1d_rolling_kernel<T>
                      : args.d_conv <= 4 ? causal_conv1d_kernel<T, 4>
                                         : causal_conv1d_kernel<T, kMaxConvTaps>;
  kernel<<<static_cast<unsigned>(t.tiles * t.channel_tiles), kBlock, 0, raw(stream)>>>(
      static_cast<const T*>(args.x), static_cast<const float*>(args.weight), static_cast<const float*>(args.bias),
      static_cast<T*>(args.out), t);
  PM_CHECK_LAUNCH("causal_conv1d");
}

template <typename T>
void launch_grad(const CausalConv1dGradArgs& args, Stream stream) {
  const bool rolling = rolls(args.d_inner, args.d_conv);
  const Tiling t = make_tiling(args.batch, args.seq_len, args.d_inner, args.d_conv, args.reverse,
                               rolling ? kRollingTile : kStagedTile, rolling ? kRollingGradRun : kStagedRun);
  const int64_t row_blocks = std::min<int64_t>(t.tiles, std::max<int64_t>(1, kGradBlocks / t.channel_tiles));
  const int64_t taps = args.d_inner * args.d_conv;
  const Scratch<float> dweight_partials(stream, row_blocks * taps), dbias_partials(stream, row_blocks * args.d_inner);
  const auto kernel = rolling            ? causal_conv1d_rolling_grad_kernel<T>
                      : args.d_conv <= 4 ? causal_conv1d_grad_kernel<T, 4>
                                         : causal_conv1d_grad_kernel<T, kMaxConvTaps>;
  kernel<<<static_cast<unsigned>(row_blocks * t.channel_tiles), kBlock, 0, raw(stream)>>>(
      static_cast<const T*>(args.dout), static_cast<const T*>(args.x), static_cast<const float*>(args.weight),
      static_cast<const float*>(args.bias), static_cast<T*>(args.dx), dweight_partials.get(), dbias_partials.get(), t,
      row_blocks);
  PM_CHECK_LAUNCH("causal_conv1d_grad");
  column_sum(dweight_partials.get(), row_blocks, taps, static_cast<float*>(args.dweight), stream);
  column_sum(dbias_partials.get(), row_blocks, args.d_inner, static_cast<float*>(args.dbias), stream);
}

}  // namespace

void causal_conv1d(const CausalConv1dArgs& args, Stream stream) {
  if (args.batch == 0 || args.seq_len == 0) return;
  dispatch_float(args.dtype, [&]<typename T>() { launch<T>(args, stream); });
}

void causal_conv1d_grad(const CausalConv1dGradArgs& args, Stream stream) {
  if (args.batch == 0 || args.seq_len == 0) {
    column_sum(nullptr, 0, args.d_inner * args.d_conv, static_cast<float*>(args.dweight), stream);
    return column_sum(nullptr, 0, args.d_inner, static_cast<float*>(args.dbias), stream);
  }
  dispatch_float(args.dtype, [&]<typename T>() { launch_grad<T>(args, stream); });
}

}  // namespace pm::cuda
