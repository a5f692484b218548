// Token expansion of one region, pack by pack, shared by the kernels that expand the regions of a tensor (token_expansion.cu)
// and those that expand means of regions (fusion_expansion.cu).
//
// A pack is kWidth neighbouring channels of one token, so that a thread does the index work once for up to 4 values. Packs are
// numbered along the path of the written map, CLS last: `index` in [0, (cells + 1) * packs of a token). Where a pack comes from
// is the caller's: `load(offset)` gives the pack at `offset` packs from the start of the region as floats.
#pragma once
#include "cuda/core/launch.cuh"
#include "cuda/core/pack.cuh"
#include "engine/core/fast_divisor.h"
#include "engine/ops/token/token_expansion.h"

namespace pm::cuda {

constexpr int kExpansionTile = 4 * kBlock;  // packs of a block

template <typename T, int kWidth>
__device__ __forceinline__ Pack<float, kWidth> to_floats(const Pack<T, kWidth>& pack) {
  Pack<float, kWidth> wide;
#pragma unroll
  for (int v = 0; v < kWidth; ++v) wide.values[v] = to_float(pack.values[v]);
  return wide;
}
template <typename T, int kWidth>
__device__ __forceinline__ Pack<T, kWidth> from_floats(const Pack<float, kWidth>& wide) {
  Pack<T, kWidth> pack;
#pragma unroll
  for (int v = 0; v < kWidth; ++v) pack.values[v] = from_float<T>(wide.values[v]);
  return pack;
}
// alpha * (a + b)
template <int kWidth>
__device__ __forceinline__ Pack<float, kWidth> scaled_sum(float alpha, const Pack<float, kWidth>& a,
                                                          const Pack<float, kWidth>& b) {
  Pack<float, kWidth> sum;
#pragma unroll
  for (int v = 0; v < kWidth; ++v) sum.values[v] = alpha * (a.values[v] + b.values[v]);
  return sum;
}
template <int kWidth>
__device__ __forceinline__ Pack<float, kWidth> scaled(float alpha, Pack<float, kWidth> a) {
#pragma unroll
  for (int v = 0; v < kWidth; ++v) a.values[v] *= alpha;
  return a;
}

// An expansion in packs, with its divisions prepared.
struct ExpansionPlan {
  ExpansionMap map;
  int in_packs, out_packs;    // of a token
  int in_region, out_region;  // packs of a region
  int cells, new_cells;
  FastDivisor by_in_packs, by_out_packs, by_w, by_new_w;

  ExpansionPlan(const ExpansionMap& m, int width)
      : map(m),
        in_packs(m.channels / width),
        out_packs(m.new_channels() / width),
        in_region(m.in_values() / width),
        out_region(m.out_values() / width),
        cells(m.region_h * m.region_w),
        new_cells(m.new_h() * m.new_w()),
        by_in_packs(in_packs),
        by_out_packs(out_packs),
        by_w(m.region_w),
        by_new_w(m.new_w()) {}
};

// Line across the axis and index along it of a position of the path over a map that is `w` wide.
struct AxisCell {
  int line, i;
};
__device__ __forceinline__ AxisCell axis_cell(const ExpansionMap& map, int w, const FastDivisor& by_w, int position) {
  const int row = by_w.quotient(position), along = position - row * w;
  const bool backwards = map.scan == ScanOrder::boustrophedon && row % 2 == 1;
  const int col = backwards ? w - 1 - along : along;
  return is_horizontal(map.expansion) ? AxisCell{row, col} : AxisCell{col, row};
}

// One pack of a result and its place, in packs from the start of the region.
template <int kWidth>
struct PlacedPack {
  int offset;
  Pack<float, kWidth> pack;
};

// Pack `index` of the expanded region; `load` reads the region before it.
template <int kWidth, typename Load>
__device__ __forceinline__ PlacedPack<kWidth> expanded(const ExpansionPlan& plan, int index, const Load& load) {
  const ExpansionMap& map = plan.map;
  const int position = plan.by_out_packs.quotient(index), pack = index - position * plan.out_packs;
  const bool second = pack >= plan.in_packs;  // only under cat: the half that m_{2j+1} fills
  const int channel = second ? pack - plan.in_packs : pack;
  const int cls_out = cls_index_of(plan.new_cells);
  if (position == plan.new_cells) {
    return {cls_out * plan.out_packs + pack, load(cls_index_of(plan.cells) * plan.in_packs + channel)};
  }
  const int offset = token_of_position(position, cls_out) * plan.out_packs + pack;
  const AxisCell cell = axis_cell(map, map.new_w(), plan.by_new_w, position);
  const auto at = [&](int i) { return load(map.in_token(cell.line, i) * plan.in_packs + channel); };
  const float first = map.shift_pad == ShiftPad::replicate ? 1.0f : 0.5f;
  const int i = 2 * cell.i + (second ? 1 : 0);
  const Pack<float, kWidth> own = at(i);
  const Pack<float, kWidth> merged = i == 0 ? scaled(first, own) : scaled_sum(0.5f, own, at(i - 1));  // m_i
  if (is_cat(map.expansion)) return {offset, merged};
  return {offset, scaled_sum(0.5f, merged, scaled_sum(0.5f, at(i + 1), own))};
}

// Pack `index` of the gradient of the region before the expansion; `load` reads the gradient of the expanded region.
template <int kWidth, typename Load>
__device__ __forceinline__ PlacedPack<kWidth> expanded_grad(const ExpansionPlan& plan, int index, const Load& load) {
  const ExpansionMap& map = plan.map;
  const int position = plan.by_in_packs.quotient(index), pack = index - position * plan.in_packs;
  const int cls_in = cls_index_of(plan.cells);
  const bool cat = is_cat(map.expansion);
  if (position == plan.cells) {
    const int dcls = cls_index_of(plan.new_cells) * plan.out_packs + pack;
    return {cls_in * plan.in_packs + pack, cat ? scaled_sum(1.0f, load(dcls), load(dcls + plan.in_packs)) : load(dcls)};
  }
  const int offset = token_of_position(position, cls_in) * plan.in_packs + pack;
  const AxisCell cell = axis_cell(map, map.region_w, plan.by_w, position);
  const int size = is_horizontal(map.expansion) ? map.region_w : map.region_h;
  const auto dmerged = [&](int i) {  // gradient of m_i
    const int token = map.out_token(cell.line, i / 2) * plan.out_packs + pack;
    return cat ? load(token + i % 2 * plan.in_packs) : scaled(0.5f, load(token));
  };
  const float own = cell.i == 0 && map.shift_pad == ShiftPad::replicate ? 1.0f : 0.5f;
  const Pack<float, kWidth> grad = scaled(own, dmerged(cell.i));
  if (cell.i + 1 == size) return {offset, grad};
  return {offset, scaled_sum(1.0f, grad, scaled(0.5f, dmerged(cell.i + 1)))};
}

// Which region, and which of its packs, a block covers: threads take index = begin + threadIdx.x and every kBlock-th after it.
struct ExpansionTile {
  int64_t region;
  int begin, end;
};
// packs: of a region. Blocks are region * tiles + tile.
__device__ __forceinline__ ExpansionTile tile_of_block(int64_t tiles, int packs) {
  const int64_t region = blockIdx.x / tiles, begin = (blockIdx.x - region * tiles) * kExpansionTile;
  // The last tile may end beyond `packs`; in 64 bits, for values close to 2^31.
  return {region, static_cast<int>(begin), static_cast<int>(min(begin + kExpansionTile, static_cast<int64_t>(packs)))};
}

// Calls fn with the channels of a pack that a token's channels and these addresses allow: 4, 2 or 1.
template <typename T, typename Fn>
void dispatch_channels(int channels, const void* a, const void* b, Fn&& fn) {
  const auto address = reinterpret_cast<uintptr_t>(a) | reinterpret_cast<uintptr_t>(b);
  const auto fits = [&](int width) {
    return channels % width == 0 && address % (sizeof(T) * static_cast<size_t>(width)) == 0;
  };
  if (fits(4)) {
    fn.template operator()<4>();
  } else if (fits(2)) {
    fn.template operator()<2>();
  } else {
    fn.template operator()<1>();
  }
}

}  // namespace pm::cuda
