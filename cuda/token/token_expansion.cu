// Shift-merge and neighbour merge along one axis of every region's map (engine/ops/token/token_expansion.h).
//
// launch  : block of kBlock threads per kExpansionTile packs of one region, regions * tiles blocks in x, one pack of 1, 2 or 4
//           channels per thread and step (expansion.cuh). Forward loops over packs of out, backward over packs of dtokens: both
//           gather, nothing is scattered. Smallest stage (one region of 2 x 1 cells, 3 channels): 1 block; largest (20 x 20
//           regions of 224 x 224 x 3 to 224 x 112 x 6): 59 200 blocks.
// traffic : every value of the input is used by 2 or 3 outputs that lie close together, so caches serve the repeats: in
//           and out once each, bandwidth-bound; floor at 4.25 TB/s for that slide in bf16: 241 MB, 57 us.
// indices : one 64-bit division per block; two multiplications with a prepared inverse per pack
// numerics: float maths, one rounding at the end. deterministic: no atomics.
#include "cuda/token/expansion.cuh"

namespace pm::cuda {
namespace {

// tokens: (regions, packs of an input region); out: (regions, packs of an output region)
template <typename T, int kWidth>
__global__ void __launch_bounds__(kBlock)
    token_expansion_kernel(const Pack<T, kWidth>* __restrict__ tokens, Pack<T, kWidth>* __restrict__ out,
                           const __grid_constant__ ExpansionPlan plan, int64_t tiles) {
  const ExpansionTile tile = tile_of_block(tiles, plan.out_region);
  const Pack<T, kWidth>* region_in = tokens + tile.region * plan.in_region;
  Pack<T, kWidth>* region_out = out + tile.region * plan.out_region;
  const auto load = [&](int offset) { return to_floats(region_in[offset]); };
  for (int64_t at = int64_t{tile.begin} + threadIdx.x; at < tile.end; at += kBlock) {
    const PlacedPack<kWidth> result = expanded<kWidth>(plan, static_cast<int>(at), load);
    region_out[result.offset] = from_floats<T>(result.pack);
  }
}

template <typename T, int kWidth>
__global__ void __launch_bounds__(kBlock)
    token_expansion_grad_kernel(const Pack<T, kWidth>* __restrict__ dout, Pack<T, kWidth>* __restrict__ dtokens,
                                const __grid_constant__ ExpansionPlan plan, int64_t tiles) {
  const ExpansionTile tile = tile_of_block(tiles, plan.in_region);
  const Pack<T, kWidth>* region_out = dout + tile.region * plan.out_region;
  Pack<T, kWidth>* region_in = dtokens + tile.region * plan.in_region;
  const auto load = [&](int offset) { return to_floats(region_out[offset]); };
  for (int64_t at = int64_t{tile.begin} + threadIdx.x; at < tile.end; at += kBlock) {
    const PlacedPack<kWidth> result = expanded_grad<kWidth>(plan, static_cast<int>(at), load);
    region_in[result.offset] = from_floats<T>(result.pack);
  }
}

}  // namespace

void token_expansion(const TokenExpansionArgs& args, Stream stream) {
  if (args.map.regions * args.map.out_values() == 0) return;
  dispatch_float(args.dtype, [&]<typename T>() {
    dispatch_channels<T>(args.map.channels, args.tokens, args.out, [&]<int kWidth>() {
      const ExpansionPlan plan(args.map, kWidth);
      const int64_t tiles = ceil_div(plan.out_region, kExpansionTile);
      token_expansion_kernel<T, kWidth><<<static_cast<unsigned>(args.map.regions * tiles), kBlock, 0, raw(stream)>>>(
          static_cast<const Pack<T, kWidth>*>(args.tokens), static_cast<Pack<T, kWidth>*>(args.out), plan, tiles);
      PM_CHECK_LAUNCH("token_expansion");
    });
  });
}

void token_expansion_grad(const TokenExpansionGradArgs& args, Stream stream) {
  if (args.map.regions * args.map.in_values() == 0) return;
  dispatch_float(args.dtype, [&]<typename T>() {
    dispatch_channels<T>(args.map.channels, args.dout, args.dtokens, [&]<int kWidth>() {
      const ExpansionPlan plan(args.map, kWidth);
      const int64_t tiles = ceil_div(plan.in_region, kExpansionTile);
      token_expansion_grad_kernel<T, kWidth>
          <<<static_cast<unsigned>(args.map.regions * tiles), kBlock, 0, raw(stream)>>>(
              static_cast<const Pack<T, kWidth>*>(args.dout), static_cast<Pack<T, kWidth>*>(args.dtokens), plan, tiles);
      PM_CHECK_LAUNCH("token_expansion_grad");
    });
  });
}

}  // namespace pm::cuda
