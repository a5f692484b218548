// Region fusion (engine/ops/token/region_fusion.h): choice (region_choice.cu), then
//   merge : out = mean of the sources; one block of kBlock threads per kItems * kBlock packs of one output region, 16-byte packs
//           where the rows allow it. 59 200 blocks of scalars for 20 x 20 regions of 224 x 224 x 3
// traffic : reads all and writes the survivors: bandwidth-bound; 400 regions of 224 x 224 x 3 with k = 14 in bf16: 237 MB,
//           floor at 4.25 TB/s 56 us. The gradient reads dout once (twice from cache where merged) and writes dtokens: the same.
// numerics: means in float. determinism: fixed order everywhere, no atomics.
#include "cuda/core/pack.cuh"
#include "cuda/token/region_choice.cuh"

namespace pm::cuda {
namespace {

constexpr int kItems = 4;  // packs of a merge thread

// tokens: (rows, packs); out: (rows_out, packs); count: (rows_out)
template <typename T, int kWidth>
__global__ void __launch_bounds__(kBlock)
    merge_kernel(const Pack<T, kWidth>* __restrict__ tokens, const int64_t* __restrict__ source,
                 const int64_t* __restrict__ start, Pack<T, kWidth>* __restrict__ out, int64_t* __restrict__ count,
                 int64_t packs, int64_t tiles) {
  const int64_t row = blockIdx.x / tiles, tile = blockIdx.x - row * tiles;
  const int64_t begin = start[row], end = start[row + 1];
  if (tile == 0 && threadIdx.x == 0) count[row] = end - begin;
  const int64_t first = tile * kItems * kBlock + threadIdx.x;
  float sum[kItems][kWidth] = {};
  for (int64_t s = begin; s < end; ++s) {
    const Pack<T, kWidth>* region = tokens + source[s] * packs;
#pragma unroll
    for (int item = 0; item < kItems; ++item) {
      if (first + item * kBlock >= packs) continue;
      const Pack<T, kWidth> pack = region[first + item * kBlock];
#pragma unroll
      for (int v = 0; v < kWidth; ++v) sum[item][v] += to_float(pack.values[v]);
    }
  }
  const float divisor = static_cast<float>(end - begin);
#pragma unroll
  for (int item = 0; item < kItems; ++item) {
    if (first + item * kBlock >= packs) continue;
    Pack<T, kWidth> pack;
#pragma unroll
    for (int v = 0; v < kWidth; ++v)
      pack.values[v] = from_float<T>(end - begin > 1 ? sum[item][v] / divisor : sum[item][v]);
    out[row * packs + first + item * kBlock] = pack;
  }
}

// dout: (batch * n_out, packs); dtokens: (batch * n_regions, packs)
template <typename T, int kWidth>
__global__ void __launch_bounds__(kBlock)
    region_fusion_grad_kernel(const Pack<T, kWidth>* __restrict__ dout, const int64_t* __restrict__ target,
                              const int64_t* __restrict__ count, Pack<T, kWidth>* __restrict__ dtokens,
                              int64_t n_regions, int64_t n_out, int64_t packs, int64_t tiles) {
  const int64_t row = blockIdx.x / tiles, tile = blockIdx.x - row * tiles;
  const int64_t source = row / n_regions * n_out + target[row];
  const int64_t shared_by = count[source];
  const float divisor = static_cast<float>(shared_by);
  const int64_t first = tile * kItems * kBlock + threadIdx.x;
#pragma unroll
  for (int item = 0; item < kItems; ++item) {
    const int64_t at = first + item * kBlock;
    if (at >= packs) continue;
    Pack<T, kWidth> pack = dout[source * packs + at];
    if (shared_by > 1) {
#pragma unroll
      for (int v = 0; v < kWidth; ++v) pack.values[v] = from_float<T>(to_float(pack.values[v]) / divisor);
    }
    dtokens[row * packs + at] = pack;
  }
}

// Calls fn with the pack width that rows of `values` elements at these addresses allow: 16 bytes or one element.
template <typename T, typename Fn>
void dispatch_width(const void* a, const void* b, int64_t values, Fn&& fn) {
  constexpr int kWide = 16 / static_cast<int>(sizeof(T));
  const auto address = reinterpret_cast<uintptr_t>(a) | reinterpret_cast<uintptr_t>(b);
  if (values % kWide == 0 && address % 16 == 0) {
    fn.template operator()<kWide>();
  } else {
    fn.template operator()<1>();
  }
}

}  // namespace

void region_fusion(const RegionFusionArgs& args, Stream stream) {
  const int64_t n_out = args.n_regions - args.k, rows = args.batch * args.n_regions, rows_out = args.batch * n_out;
  const int64_t values = args.region_len * args.channels;
  if (rows == 0) return;
  const RegionSources sources(stream, rows, rows_out);
  choose_regions(args, sources, stream);
  dispatch_float(args.dtype, [&]<typename T>() {
    dispatch_width<T>(args.tokens, args.out, values, [&]<int kWidth>() {
      const int64_t packs = values / kWidth, tiles = ceil_div(packs, kItems * kBlock);
      merge_kernel<T, kWidth><<<static_cast<unsigned>(rows_out * tiles), kBlock, 0, raw(stream)>>>(
          static_cast<const Pack<T, kWidth>*>(args.tokens), sources.source(), sources.start(),
          static_cast<Pack<T, kWidth>*>(args.out), args.count, packs, tiles);
      PM_CHECK_LAUNCH("region_fusion merge");
    });
  });
}

void region_fusion_grad(const RegionFusionGradArgs& args, Stream stream) {
  const int64_t rows = args.batch * args.n_regions;
  if (rows == 0) return;
  dispatch_float(args.dtype, [&]<typename T>() {
    dispatch_width<T>(args.dout, args.dtokens, args.region_values, [&]<int kWidth>() {
      const int64_t packs = args.region_values / kWidth, tiles = ceil_div(packs, kItems * kBlock);
      region_fusion_grad_kernel<T, kWidth><<<static_cast<unsigned>(rows * tiles), kBlock, 0, raw(stream)>>>(
          static_cast<const Pack<T, kWidth>*>(args.dout), args.target, args.count,
          static_cast<Pack<T, kWidth>*>(args.dtokens), args.n_regions, args.n_out, packs, tiles);
      PM_CHECK_LAUNCH("region_fusion_grad");
    });
  });
}

}  // namespace pm::cuda
