// Shift-merge and neighbour merge along one axis of every region's map (engine/ops/token/token_expansion.h).
//
// launch  : block of kBlock threads per kTile output values of one region, regions * tiles blocks in x, one value per
//           thread and step. Forward loops over values of out, backward over values of dtokens: both gather, nothing is
//           scattered. Smallest stage (one region of 2 x 1 cells, 3 channels): 1 block; largest (20 x 20 regions of 224
//           x 224 x 3 to 224 x 112 x 6): 59 200 blocks.
// traffic : every value of the input is used by 2 or 3 outputs that lie close together, so caches serve the repeats: in
//           and out once each, bandwidth-bound; floor at 4.25 TB/s for that slide in bf16: 241 MB, 57 us.
// indices : one 64-bit division per block; two 32-bit divisions per value (token and channel, then the cell of the map)
// numerics: float maths, one rounding at the end. deterministic: no atomics.
#include "cuda/core/launch.cuh"
#include "engine/ops/token/token_expansion.h"

namespace pm::cuda {
namespace {

constexpr int kTile = 4 * kBlock;  // values of a block

// Which region and which of its values a block covers.
struct Tile {
  int64_t region;
  int begin, end;
};

__device__ __forceinline__ Tile tile_of_block(int64_t tiles, int values) {
  const int64_t region = blockIdx.x / tiles;
  // The last tile may end beyond `values`; in 64 bits, for values close to 2^31.
  const int64_t begin = (blockIdx.x - region * tiles) * kTile;
  return {region, static_cast<int>(begin), static_cast<int>(min(begin + kTile, static_cast<int64_t>(values)))};
}

// Cell `i` along the axis, line `line` across it.
struct AxisCell {
  int line, i;
};

__device__ __forceinline__ AxisCell axis_cell(const ExpansionMap& map, int w, int position) {
  const auto cell = scan_cell(map.scan, w, position);
  return is_horizontal(map.expansion) ? AxisCell{cell.row, cell.col} : AxisCell{cell.col, cell.row};
}

// m_i of one channel; `tokens` points to that channel of the region's first token.
template <typename T>
__device__ __forceinline__ float shift_merged(const ExpansionMap& map, const T* __restrict__ tokens, int line, int i) {
  const float own = to_float(tokens[map.in_token(line, i) * map.channels]);
  if (i == 0) return map.shift_pad == ShiftPad::replicate ? own : 0.5f * own;
  return 0.5f * (own + to_float(tokens[map.in_token(line, i - 1) * map.channels]));
}

// tokens: (regions, region_h * region_w + 1, channels); out: (regions, new_h * new_w + 1, new_channels)
template <typename T>
__global__ void __launch_bounds__(kBlock)
    token_expansion_kernel(const T* __restrict__ tokens, T* __restrict__ out, ExpansionMap map, int64_t tiles) {
  const Tile tile = tile_of_block(tiles, map.out_values());
  const int channels = map.channels, new_channels = map.new_channels();
  const int cls_in = cls_index_of(map.region_h * map.region_w), cls_out = cls_index_of(map.new_h() * map.new_w());
  const T* region_in = tokens + tile.region * map.in_values();
  T* region_out = out + tile.region * map.out_values();
  for (int64_t at = tile.begin + static_cast<int>(threadIdx.x); at < tile.end; at += kBlock) {
    const int value = static_cast<int>(at);
    const int token = value / new_channels;
    const int new_channel = value - token * new_channels;
    const bool second = new_channel >= channels;  // only under cat
    const T* channel_in = region_in + (second ? new_channel - channels : new_channel);
    float result = 0.0f;
    if (token == cls_out) {
      result = to_float(channel_in[cls_in * channels]);
    } else {
      const AxisCell cell = axis_cell(map, map.new_w(), position_of_token(token, cls_out));
      if (is_cat(map.expansion)) {
        result = shift_merged(map, channel_in, cell.line, 2 * cell.i + (second ? 1 : 0));
      } else {
        result = 0.5f * (shift_merged(map, channel_in, cell.line, 2 * cell.i) +
                         shift_merged(map, channel_in, cell.line, 2 * cell.i + 1));
      }
    }
    region_out[value] = from_float<T>(result);
  }
}

// Gradient of m_i of one channel; `dout` points to that channel of the region's first output token.
template <typename T>
__device__ __forceinline__ float shift_merged_grad(const ExpansionMap& map, const T* __restrict__ dout, int line,
                                                   int i) {
  const T* token = dout + map.out_token(line, i / 2) * map.new_channels();
  return is_cat(map.expansion) ? to_float(token[(i % 2) * map.channels]) : 0.5f * to_float(token[0]);
}

template <typename T>
__global__ void __launch_bounds__(kBlock)
    token_expansion_grad_kernel(const T* __restrict__ dout, T* __restrict__ dtokens, ExpansionMap map, int64_t tiles) {
  const Tile tile = tile_of_block(tiles, map.in_values());
  const int channels = map.channels;
  const int size = is_horizontal(map.expansion) ? map.region_w : map.region_h;
  const int cls_in = cls_index_of(map.region_h * map.region_w), cls_out = cls_index_of(map.new_h() * map.new_w());
  const T* region_out = dout + tile.region * map.out_values();
  T* region_in = dtokens + tile.region * map.in_values();
  for (int64_t at = tile.begin + static_cast<int>(threadIdx.x); at < tile.end; at += kBlock) {
    const int value = static_cast<int>(at);
    const int token = value / channels;
    const T* channel_out = region_out + (value - token * channels);
    float grad = 0.0f;
    if (token == cls_in) {
      const T* dcls = channel_out + cls_out * map.new_channels();
      grad = to_float(dcls[0]) + (is_cat(map.expansion) ? to_float(dcls[channels]) : 0.0f);
    } else {
      const AxisCell cell = axis_cell(map, map.region_w, position_of_token(token, cls_in));
      const float own = cell.i == 0 && map.shift_pad == ShiftPad::replicate ? 1.0f : 0.5f;
      grad = own * shift_merged_grad(map, channel_out, cell.line, cell.i);
      if (cell.i + 1 < size) grad += 0.5f * shift_merged_grad(map, channel_out, cell.line, cell.i + 1);
    }
    region_in[value] = from_float<T>(grad);
  }
}

}  // namespace

void token_expansion(const TokenExpansionArgs& args, Stream stream) {
  const int64_t tiles = ceil_div(args.map.out_values(), kTile);
  const int64_t blocks = args.map.regions * tiles;
  if (blocks == 0) return;
  dispatch_float(args.dtype, [&]<typename T>() {
    token_expansion_kernel<T><<<static_cast<unsigned>(blocks), kBlock, 0, raw(stream)>>>(
        static_cast<const T*>(args.tokens), static_cast<T*>(args.out), args.map, tiles);
    PM_CHECK_LAUNCH("token_expansion");
  });
}

void token_expansion_grad(const TokenExpansionGradArgs& args, Stream stream) {
  const int64_t tiles = ceil_div(args.map.in_values(), kTile);
  const int64_t blocks = args.map.regions * tiles;
  if (blocks == 0) return;
  dispatch_float(args.dtype, [&]<typename T>() {
    token_expansion_grad_kernel<T><<<static_cast<unsigned>(blocks), kBlock, 0, raw(stream)>>>(
        static_cast<const T*>(args.dout), static_cast<T*>(args.dtokens), args.map, tiles);
    PM_CHECK_LAUNCH("token_expansion_grad");
  });
}

}  // namespace pm::cuda
