// Region choice, five steps in stream order, the host never waits:
//   1 norm2      : squared norms of the CLS tokens, one thread per region
//   2 match      : best gallery region of each probe; a block of kBlock threads owns kProbeTile probes and streams over all
//                  gallery regions kGalleryTile at a time: no pairs x pairs matrix. 1 block for one pair, 3 125 for 1e5 regions
//   3 select     : rank of each probe among the probes of its image by counting; the first k are merged
//   4 place      : one block of kPlaceBlock threads per image scans the survivors: where each region goes
//   5 sort, start: stable radix sort of the regions by destination (CUB) = the sources of each output in ascending order
// traffic : CLS tokens and indices only; step 2 does pairs^2 * channels double FMAs: 40e3 * 384 for 400 regions (latency),
//           2.5e9 * 384 for 1e5 (an estimated 0.1 to 0.2 s).
// numerics: similarity in double, each sum over channels in ascending order by one thread (products of float32 values are
//           exact in double), so that the choice is the same as on the CPU.
// determinism: fixed order everywhere, ties by index, no atomics.
#include <bit>
#include <cub/block/block_scan.cuh>
#include <cub/device/device_radix_sort.cuh>

#include "cuda/core/reduce.cuh"
#include "cuda/token/region_choice.cuh"

namespace pm::cuda {
namespace {

constexpr int kProbeTile = 16;                          // probes of a match block
constexpr int kLanes = kBlock / kProbeTile;             // threads that share a probe: half a warp
constexpr int kGalleryPerLane = 4;                      // gallery regions of a thread per step
constexpr int kGalleryTile = kLanes * kGalleryPerLane;  // gallery regions of a block per step
constexpr int kDepth = 32;                              // channels of a step
constexpr int kPlaceBlock = 1024;
constexpr double kNanSimilarity = -2.0;  // below every cosine
static_assert(kLanes == 16 && kWarp % kLanes == 0);

// CLS tokens of all images: region `i` of image `b` starts at values + (b * n_regions + i) * stride.
template <typename T>
struct ClsTokens {
  const T* values;
  int64_t n_regions, stride, channels;
  __device__ __forceinline__ const T* at(int64_t b, int64_t region) const {
    return values + (b * n_regions + region) * stride;
  }
};

// norm2: (batch, 2 * pairs)
template <typename T>
__global__ void __launch_bounds__(kBlock) norm2_kernel(ClsTokens<T> cls, int64_t batch, int64_t pairs, double* norm2) {
  const int64_t step = int64_t{gridDim.x} * kBlock;
  for (int64_t i = int64_t{blockIdx.x} * kBlock + threadIdx.x; i < batch * 2 * pairs; i += step) {
    const int64_t b = i / (2 * pairs);
    const T* token = cls.at(b, i - b * 2 * pairs);
    double sum = 0.0;
    for (int64_t c = 0; c < cls.channels; ++c) {
      const double value = static_cast<double>(to_float(token[c]));
      sum = fma(value, value, sum);
    }
    norm2[i] = sum;
  }
}

__device__ __forceinline__ double cosine(double product, double norm2_a, double norm2_b) {
  const double norms = norm2_a * norm2_b;
  if (norms == 0.0) return 0.0;
  const double similarity = product / sqrt(norms);
  return isnan(similarity) ? kNanSimilarity : similarity;
}

// Copies `rows` CLS tokens of every second region, from region `first` on, channels [c0, c0 + kDepth), to shared memory;
// zeros beyond the last pair and the last channel.
template <int kRows, typename T>
__device__ __forceinline__ void load_tile(double (&tile)[kRows][kDepth + 1], const ClsTokens<T>& cls, int64_t b,
                                          int64_t first_pair, int64_t pairs, int odd, int64_t c0) {
  for (int i = static_cast<int>(threadIdx.x); i < kRows * kDepth; i += kBlock) {
    const int row = i / kDepth, c = i % kDepth;
    const int64_t pair = first_pair + row;
    const bool inside = pair < pairs && c0 + c < cls.channels;
    tile[row][c] = inside ? static_cast<double>(to_float(cls.at(b, 2 * pair + odd)[c0 + c])) : 0.0;
  }
}

// similarity, gallery: (batch, pairs); gallery counts pairs: pair j stands for region 2j + 1
template <typename T>
__global__ void __launch_bounds__(kBlock)
    match_kernel(ClsTokens<T> cls, const double* __restrict__ norm2, int64_t pairs, int64_t probe_tiles,
                 double* __restrict__ similarity, int64_t* __restrict__ gallery) {
  __shared__ double probe_tile[kProbeTile][kDepth + 1];
  __shared__ double gallery_tile[kGalleryTile][kDepth + 1];
  const int64_t b = blockIdx.x / probe_tiles;
  const int64_t first_probe = (blockIdx.x - b * probe_tiles) * kProbeTile;
  const int row = static_cast<int>(threadIdx.x) / kLanes, lane = static_cast<int>(threadIdx.x) % kLanes;
  const int64_t probe = first_probe + row;
  const double probe_norm2 = probe < pairs ? norm2[b * 2 * pairs + 2 * probe] : 0.0;
  double best = kNanSimilarity - 1.0;
  int64_t best_pair = 0;
  for (int64_t g0 = 0; g0 < pairs; g0 += kGalleryTile) {
    double product[kGalleryPerLane] = {};
    for (int64_t c0 = 0; c0 < cls.channels; c0 += kDepth) {
      load_tile(probe_tile, cls, b, first_probe, pairs, 0, c0);
      load_tile(gallery_tile, cls, b, g0, pairs, 1, c0);
      __syncthreads();
      const int depth = static_cast<int>(min(int64_t{kDepth}, cls.channels - c0));
      for (int c = 0; c < depth; ++c) {
        const double value = probe_tile[row][c];
#pragma unroll
        for (int j = 0; j < kGalleryPerLane; ++j) {
          product[j] = fma(value, gallery_tile[lane + j * kLanes][c], product[j]);
        }
      }
      __syncthreads();
    }
#pragma unroll
    for (int j = 0; j < kGalleryPerLane; ++j) {
      const int64_t pair = g0 + lane + j * kLanes;
      if (pair >= pairs) continue;
      const double cos = cosine(product[j], probe_norm2, norm2[b * 2 * pairs + 2 * pair + 1]);
      if (cos > best) {
        best = cos;
        best_pair = pair;
      }
    }
  }
#pragma unroll
  for (int offset = kLanes / 2; offset > 0; offset /= 2) {
    const double other = __shfl_xor_sync(0xffffffffu, best, offset);
    const int64_t other_pair = __shfl_xor_sync(0xffffffffu, best_pair, offset);
    if (other > best || (other == best && other_pair < best_pair)) {
      best = other;
      best_pair = other_pair;
    }
  }
  if (lane == 0 && probe < pairs) {
    similarity[b * pairs + probe] = best;
    gallery[b * pairs + probe] = best_pair;
  }
}

// Keeps the choice of the k probes of highest similarity and sets that of the others to -1. similarity, gallery: (batch, pairs)
__global__ void __launch_bounds__(kBlock)
    select_kernel(const double* __restrict__ similarity, int64_t* __restrict__ gallery, int64_t pairs, int64_t tiles,
                  int64_t k) {
  __shared__ double others[kBlock];
  const int64_t b = blockIdx.x / tiles;
  const int64_t probe = (blockIdx.x - b * tiles) * kBlock + threadIdx.x;
  const double* image = similarity + b * pairs;
  const double own = probe < pairs ? image[probe] : 0.0;
  int64_t rank = 0;
  for (int64_t first = 0; first < pairs; first += kBlock) {
    __syncthreads();
    if (first + threadIdx.x < pairs) others[threadIdx.x] = image[first + threadIdx.x];
    __syncthreads();
    const int rows = static_cast<int>(min(int64_t{kBlock}, pairs - first));
    for (int i = 0; i < rows; ++i) {
      rank += others[i] > own || (others[i] == own && first + i < probe) ? 1 : 0;
    }
  }
  if (probe < pairs && rank >= k) gallery[b * pairs + probe] = -1;
}

// The gallery region that `region` merges into, or -1. merged_into: (pairs) of one image, null for no merges.
__device__ __forceinline__ int64_t merge_target(const int64_t* merged_into, int64_t pairs, int64_t region) {
  if (merged_into == nullptr || region % 2 == 1 || region / 2 >= pairs) return -1;
  const int64_t pair = merged_into[region / 2];
  return pair < 0 ? -1 : 2 * pair + 1;
}

// target, key, source: (batch, n_regions); key = the row of out, source = the row of tokens.
// Reads what other threads of the block wrote to target: no __restrict__.
__global__ void __launch_bounds__(kPlaceBlock)
    place_kernel(const int64_t* merged_into, int64_t n_regions, int64_t n_out, int64_t* target, uint64_t* key,
                 int64_t* source) {
  using Scan = cub::BlockScan<int, kPlaceBlock>;
  __shared__ typename Scan::TempStorage storage;
  const int64_t b = blockIdx.x, pairs = n_regions / 2;
  const int64_t* merged = merged_into == nullptr ? nullptr : merged_into + b * pairs;
  int64_t* image = target + b * n_regions;
  int64_t placed = 0;
  for (int64_t first = 0; first < n_regions; first += kPlaceBlock) {
    const int64_t region = first + threadIdx.x;
    const int kept = region < n_regions && merge_target(merged, pairs, region) < 0 ? 1 : 0;
    int before = 0, total = 0;
    Scan(storage).ExclusiveSum(kept, before, total);
    if (kept == 1) image[region] = placed + before;
    placed += total;
    __syncthreads();  // storage is used again
  }
  for (int64_t region = threadIdx.x; region < n_regions; region += kPlaceBlock) {
    const int64_t into = merge_target(merged, pairs, region);
    const int64_t place = image[into < 0 ? region : into];  // gallery regions are never merged themselves
    if (into >= 0) image[region] = place;
    key[b * n_regions + region] = static_cast<uint64_t>(b * n_out + place);
    source[b * n_regions + region] = b * n_regions + region;
  }
}

// start[o] = first entry of row o of out in the sorted sources; every row has one. start: (rows_out + 1)
__global__ void __launch_bounds__(kBlock)
    start_kernel(const uint64_t* __restrict__ sorted_key, int64_t rows, int64_t* __restrict__ start) {
  const int64_t step = int64_t{gridDim.x} * kBlock;
  for (int64_t i = int64_t{blockIdx.x} * kBlock + threadIdx.x; i < rows; i += step) {
    if (i == 0 || sorted_key[i] != sorted_key[i - 1]) start[sorted_key[i]] = i;
    if (i == rows - 1) start[sorted_key[i] + 1] = rows;
  }
}

// Steps 1 to 3: gallery (batch, pairs) = where each probe merges into, -1 for those that stay.
void choose(const RegionFusionArgs& args, int64_t* gallery, Stream stream) {
  const int64_t pairs = args.n_regions / 2;
  Scratch<double> norm2(stream, args.batch * 2 * pairs), similarity(stream, args.batch * pairs);
  dispatch_float(args.dtype, [&]<typename T>() {
    const int64_t offset = (args.region_len - 1) / 2 * args.channels;
    const ClsTokens<T> cls{static_cast<const T*>(args.tokens) + offset, args.n_regions, args.region_len * args.channels,
                           args.channels};
    norm2_kernel<T><<<grid_for(args.batch * 2 * pairs), kBlock, 0, raw(stream)>>>(cls, args.batch, pairs, norm2.get());
    PM_CHECK_LAUNCH("region_choice norm2");
    const int64_t probe_tiles = ceil_div(pairs, kProbeTile);
    match_kernel<T><<<static_cast<unsigned>(args.batch * probe_tiles), kBlock, 0, raw(stream)>>>(
        cls, norm2.get(), pairs, probe_tiles, similarity.get(), gallery);
    PM_CHECK_LAUNCH("region_choice match");
  });
  const int64_t tiles = ceil_div(pairs, kBlock);
  select_kernel<<<static_cast<unsigned>(args.batch * tiles), kBlock, 0, raw(stream)>>>(similarity.get(), gallery, pairs,
                                                                                       tiles, args.k);
  PM_CHECK_LAUNCH("region_choice select");
}

// Step 5: sorts (key, source) by key; ties keep their order.
void sort_by_key(const uint64_t* key, uint64_t* sorted_key, const int64_t* source, int64_t* sorted_source, int64_t rows,
                 int64_t keys, Stream stream) {
  const int bits = std::max(1, static_cast<int>(std::bit_width(static_cast<uint64_t>(keys - 1))));
  size_t bytes = 0;
  PM_CUDA_CHECK(cub::DeviceRadixSort::SortPairs(nullptr, bytes, key, sorted_key, source, sorted_source, rows, 0, bits,
                                                raw(stream)));
  Scratch<uint8_t> storage(stream, static_cast<int64_t>(std::max<size_t>(bytes, 1)));
  PM_CUDA_CHECK(cub::DeviceRadixSort::SortPairs(storage.get(), bytes, key, sorted_key, source, sorted_source, rows, 0,
                                                bits, raw(stream)));
}

}  // namespace

void choose_regions(const RegionFusionArgs& args, const RegionSources& sources, Stream stream) {
  const int64_t n = args.n_regions, n_out = n - args.k, rows = args.batch * n, rows_out = args.batch * n_out;
  Scratch<int64_t> gallery(stream, args.batch * (n / 2));
  if (args.k > 0) choose(args, gallery.get(), stream);

  Scratch<uint64_t> key(stream, rows), sorted_key(stream, rows);
  Scratch<int64_t> source(stream, rows);
  place_kernel<<<static_cast<unsigned>(args.batch), kPlaceBlock, 0, raw(stream)>>>(
      args.k > 0 ? gallery.get() : nullptr, n, n_out, args.target, key.get(), source.get());
  PM_CHECK_LAUNCH("region_choice place");
  sort_by_key(key.get(), sorted_key.get(), source.get(), sources.source(), rows, rows_out, stream);
  start_kernel<<<grid_for(rows), kBlock, 0, raw(stream)>>>(sorted_key.get(), rows, sources.start());
  PM_CHECK_LAUNCH("region_choice start");
}

}  // namespace pm::cuda
