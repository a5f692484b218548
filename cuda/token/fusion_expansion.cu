// Region fusion and token expansion in one pass (engine/ops/token/fusion_expansion.h): choice (region_choice.cu), then
//   forward  : block of kBlock threads per kExpansionTile packs of one output region, as in token_expansion.cu; a pack is made
//              from 2 or 3 cells of the region's sources. Nearly every region has one source, and a block takes the loop over
//              sources only where there are more.
//   backward : block per kExpansionTile packs of one input region; gathers from the output region that it went to.
// launch  : rows * tiles blocks in x: 1 for the smallest stage, 59 200 for 20 x 20 regions of 224 x 224 x 3
// traffic : forward reads all regions and writes the survivors once: 400 regions of 224 x 224 x 3 with k = 14 in bf16: 237 MB,
//           floor at 4.25 TB/s 56 us. Fusion and expansion one after the other: 470 MB. Backward: the same.
// numerics: means and expansion in float, one rounding at the end. determinism: fixed order everywhere, no atomics.
#include "cuda/token/expansion.cuh"
#include "cuda/token/region_choice.cuh"
#include "engine/ops/token/fusion_expansion.h"

namespace pm::cuda {
namespace {

// tokens: (rows, packs of an input region); out: (rows_out, packs of an output region); count: (rows_out)
template <typename T, int kWidth>
__global__ void __launch_bounds__(kBlock)
    fusion_expansion_kernel(const Pack<T, kWidth>* __restrict__ tokens, const int64_t* __restrict__ source,
                            const int64_t* __restrict__ start, Pack<T, kWidth>* __restrict__ out,
                            int64_t* __restrict__ count, const __grid_constant__ ExpansionPlan plan, int64_t tiles) {
  const ExpansionTile tile = tile_of_block(tiles, plan.out_region);
  const int64_t first = start[tile.region], last = start[tile.region + 1];
  if (tile.begin == 0 && threadIdx.x == 0) count[tile.region] = last - first;
  Pack<T, kWidth>* region_out = out + tile.region * plan.out_region;
  const auto expand = [&](const auto& load) {
    for (int64_t at = int64_t{tile.begin} + threadIdx.x; at < tile.end; at += kBlock) {
      const PlacedPack<kWidth> result = expanded<kWidth>(plan, static_cast<int>(at), load);
      region_out[result.offset] = from_floats<T>(result.pack);
    }
  };
  if (last - first == 1) {
    const Pack<T, kWidth>* region = tokens + source[first] * plan.in_region;
    expand([&](int offset) { return to_floats(region[offset]); });
    return;
  }
  const float divisor = static_cast<float>(last - first);
  expand([&](int offset) {
    Pack<float, kWidth> sum{};
    for (int64_t s = first; s < last; ++s) {
      sum = scaled_sum(1.0f, sum, to_floats(tokens[source[s] * plan.in_region + offset]));
    }
#pragma unroll
    for (int v = 0; v < kWidth; ++v) sum.values[v] /= divisor;
    return sum;
  });
}

// dout: (batch * n_out, packs of an output region); dtokens: (batch * n_regions, packs of an input region)
template <typename T, int kWidth>
__global__ void __launch_bounds__(kBlock)
    fusion_expansion_grad_kernel(const Pack<T, kWidth>* __restrict__ dout, const int64_t* __restrict__ target,
                                 const int64_t* __restrict__ count, Pack<T, kWidth>* __restrict__ dtokens,
                                 int64_t n_regions, int64_t n_out, const __grid_constant__ ExpansionPlan plan,
                                 int64_t tiles) {
  const ExpansionTile tile = tile_of_block(tiles, plan.in_region);
  const int64_t merged = tile.region / n_regions * n_out + target[tile.region];
  const int64_t shared_by = count[merged];
  const float divisor = static_cast<float>(shared_by);
  const Pack<T, kWidth>* region_out = dout + merged * plan.out_region;
  Pack<T, kWidth>* region_in = dtokens + tile.region * plan.in_region;
  const auto load = [&](int offset) { return to_floats(region_out[offset]); };
  for (int64_t at = int64_t{tile.begin} + threadIdx.x; at < tile.end; at += kBlock) {
    PlacedPack<kWidth> result = expanded_grad<kWidth>(plan, static_cast<int>(at), load);
    if (shared_by > 1) {
#pragma unroll
      for (int v = 0; v < kWidth; ++v) result.pack.values[v] /= divisor;
    }
    region_in[result.offset] = from_floats<T>(result.pack);
  }
}

}  // namespace

void fusion_expansion(const FusionExpansionArgs& args, Stream stream) {
  const int64_t rows = args.batch * args.n_regions, rows_out = args.map.regions;
  if (rows == 0) return;
  const RegionSources sources(stream, rows, rows_out);
  const int64_t region_len = int64_t{args.map.region_h} * args.map.region_w + 1;
  choose_regions({args.tokens, args.out, args.target, args.count, args.batch, args.n_regions, region_len,
                  args.map.channels, args.k, args.dtype},
                 sources, stream);
  dispatch_float(args.dtype, [&]<typename T>() {
    dispatch_channels<T>(args.map.channels, args.tokens, args.out, [&]<int kWidth>() {
      const ExpansionPlan plan(args.map, kWidth);
      const int64_t tiles = ceil_div(plan.out_region, kExpansionTile);
      fusion_expansion_kernel<T, kWidth><<<static_cast<unsigned>(rows_out * tiles), kBlock, 0, raw(stream)>>>(
          static_cast<const Pack<T, kWidth>*>(args.tokens), sources.source(), sources.start(),
          static_cast<Pack<T, kWidth>*>(args.out), args.count, plan, tiles);
      PM_CHECK_LAUNCH("fusion_expansion");
    });
  });
}

void fusion_expansion_grad(const FusionExpansionGradArgs& args, Stream stream) {
  const int64_t rows = args.map.regions;
  if (rows == 0) return;
  dispatch_float(args.dtype, [&]<typename T>() {
    dispatch_channels<T>(args.map.channels, args.dout, args.dtokens, [&]<int kWidth>() {
      const ExpansionPlan plan(args.map, kWidth);
      const int64_t tiles = ceil_div(plan.in_region, kExpansionTile);
      fusion_expansion_grad_kernel<T, kWidth><<<static_cast<unsigned>(rows * tiles), kBlock, 0, raw(stream)>>>(
          static_cast<const Pack<T, kWidth>*>(args.dout), args.target, args.count,
          static_cast<Pack<T, kWidth>*>(args.dtokens), args.n_regions, args.n_out, plan, tiles);
      PM_CHECK_LAUNCH("fusion_expansion_grad");
    });
  });
}

}  // namespace pm::cuda
