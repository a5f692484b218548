// What lies between the convolutions and the scans of the fused Mamba block, beside the matrix products: the step sizes, and
// the way back to projected rows (their layout: block_weights.cu).
//
// step_sizes        : delta = softplus(dt_weight dt + dt_bias). Writes rows * d_inner values per direction: bandwidth-bound,
//                     0.67 us per 1e6 bf16 at 3.0 TB/s, 20 issue slots of an H100 per 32 values.
//                     bf16, d_inner a multiple of 32: by tensor cores, dt_weight as the sum of two bf16 (16 bits of it).
//                     A warp keeps the weights of 32 channels in registers and walks rows, 16 at a time. 14 to 18
//                     instructions (SASS) per 32 values.
//                     Else a thread keeps the row of dt_weight of its channels in registers and walks rows; dt is the same
//                     for all channels of a row, so its loads are broadcasts.
// gather_pair_grads : dproj from the partial dB, dC of the channel groups and from ddt; a thread makes four columns of every
//                     gridDim-th row of its place.
// numerics          : float32; softplus by expf and a series of log1p, in bf16 by ex2.approx and a polynomial (7e-5).
//                     deterministic: fixed order of the groups.
#include "cuda/scan/block.cuh"

namespace pm::cuda::block {
namespace {

constexpr int kPairs = 2 * kStates;
constexpr int kStepThreads = 128;
constexpr int kStepRows = 16;  // rows that a thread makes at least, where there are enough
constexpr int kTileRows = 16, kGroupChannels = 32, kGroups = kGroupChannels / 8;  // of the products of a warp
constexpr int kMostTiles = 16;                                                    // of a warp
constexpr int64_t kEnoughWarps = 132 * 32;

__device__ __forceinline__ float4 load_four(const float* source) { return *reinterpret_cast<const float4*>(source); }
__device__ __forceinline__ float4 load_four(const __nv_bfloat16* source) {
  const uint2 v = *reinterpret_cast<const uint2*>(source);
  return make_float4(__uint_as_float(v.x << 16), __uint_as_float(v.x & 0xffff0000u), __uint_as_float(v.y << 16),
                     __uint_as_float(v.y & 0xffff0000u));
}

template <typename T>
struct StepTensors {
  const T* proj[2];
  T* delta[2];
  const float *weight[2], *bias[2];
};

// kRank: dt_rank rounded up; the columns behind it are zeros in proj. kChannels neighbouring channels to a thread: they
// share the loads of dt.
template <typename T, int kRank, int kChannels>
__global__ void __launch_bounds__(kStepThreads)
    block_step_kernel(const __grid_constant__ StepTensors<T> tensors, int64_t rows, int d_inner, int width,
                      int channel_tiles, int dt_rank, int proj_width) {
  const bool reverse = blockIdx.y == 1;
  const T* proj = reverse ? tensors.proj[1] : tensors.proj[0];
  T* delta = reverse ? tensors.delta[1] : tensors.delta[0];
  const float* weight = reverse ? tensors.weight[1] : tensors.weight[0];
  const int strands = kStepThreads / width, strand = threadIdx.x / width;
  const int channel = (blockIdx.x % channel_tiles * width + threadIdx.x % width) * kChannels;
  if (strand >= strands || channel >= d_inner) return;
  float w[kChannels][kRank], bias[kChannels];
#pragma unroll
  for (int c = 0; c < kChannels; ++c) {
#pragma unroll
    for (int r = 0; r < kRank; ++r) w[c][r] = r < dt_rank ? weight[int64_t{channel + c} * dt_rank + r] : 0.0f;
    bias[c] = (reverse ? tensors.bias[1] : tensors.bias[0])[channel + c];
  }
  const int64_t step = int64_t{gridDim.x} / channel_tiles * strands;
  const int64_t first = int64_t{blockIdx.x} / channel_tiles * strands + strand;
  const T* dt = proj + first * proj_width + kPairs;
  T* out = delta + first * d_inner + channel;
#pragma unroll 2
  for (int64_t row = first; row < rows; row += step, dt += step * proj_width, out += step * d_inner) {
    float sum[kChannels];
#pragma unroll
    for (int c = 0; c < kChannels; ++c) sum[c] = bias[c];
#pragma unroll
    for (int r = 0; r < kRank; r += 4) {
      const float4 four = kPairs + r < proj_width ? load_four(dt + r) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll
      for (int c = 0; c < kChannels; ++c) {
        sum[c] = fmaf(w[c][r], four.x, sum[c]);
        sum[c] = fmaf(w[c][r + 1], four.y, sum[c]);
        sum[c] = fmaf(w[c][r + 2], four.z, sum[c]);
        sum[c] = fmaf(w[c][r + 3], four.w, sum[c]);
      }
    }
#pragma unroll
    for (int c = 0; c < kChannels; ++c) sum[c] = scan::softplus_as<T>(sum[c]);
    *reinterpret_cast<Vector<T, kChannels>*>(out) = Vector<T, kChannels>::of(sum);
  }
}

// One product of 16 rows, 16 columns of dt and 8 channels, added to c.
__device__ __forceinline__ void multiply_add(const unsigned (&a)[4], const unsigned (&b)[2], const float (&c)[4],
                                             float (&d)[4]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%10, %11, %12, %13};"
      : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]));
}

// What a lane holds of dt_weight, of 32 channels and 16 * kSteps columns: four products of eight channels each. Lane = 4 *
// row + quad has columns 4 * quad to 4 * quad + 3 of every 16 of dt, and ends with channels 8 * quad to 8 * quad + 7 of its
// row: so channel 8 * (n / 2) + 2 * j + n % 2 is number n of product j.
template <int kSteps>
struct StepWeights {
  unsigned high[kGroups][kSteps][2], low[kGroups][kSteps][2];  // pairs of bf16, their sum has 16 bits of the weight
  float bias[kGroups][4];

  __device__ __forceinline__ StepWeights(const float* weight, const float* dt_bias, int first_channel, int dt_rank,
                                         int lane) {
    const int n = lane / 4, quad = lane % 4;
#pragma unroll
    for (int j = 0; j < kGroups; ++j) {
      const float* row = weight + int64_t{first_channel + 8 * (n / 2) + 2 * j + n % 2} * dt_rank;
#pragma unroll
      for (int k = 0; k < 2 * kSteps; ++k) {
        const int r = k / 2 * 16 + quad * 4 + k % 2 * 2;
        const float w[2] = {r < dt_rank ? row[r] : 0.0f, r + 1 < dt_rank ? row[r + 1] : 0.0f};
        const auto rounded_pair = Vector<__nv_bfloat16, 2>::of(w);
        const float rest[2] = {w[0] - rounded_pair[0], w[1] - rounded_pair[1]};
        high[j][k / 2][k % 2] = rounded_pair.word[0];
        low[j][k / 2][k % 2] = Vector<__nv_bfloat16, 2>::of(rest).word[0];
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) bias[j][i] = dt_bias[first_channel + 8 * quad + 2 * j + i % 2];
    }
  }
};

// A warp makes `tiles` times 16 rows of 32 channels. Rows or columns that do not exist are zeros.
template <int kSteps>
__global__ void __launch_bounds__(kStepThreads)
    block_step_matrix_kernel(const __grid_constant__ StepTensors<__nv_bfloat16> tensors, int64_t rows, int d_inner,
                             int tiles, int dt_rank, int proj_width) {
  using Four = Vector<__nv_bfloat16, 4>;
  using Eight = Vector<__nv_bfloat16, 8>;
  const bool reverse = blockIdx.y == 1;
  const int lane = threadIdx.x % kWarp, quad = lane % 4;
  const unsigned warp = blockIdx.x * (kStepThreads / kWarp) + threadIdx.x / kWarp, groups = d_inner / kGroupChannels;
  const int64_t first = int64_t{warp / groups} * tiles * kTileRows + lane / 4;  // of the lane; the other is 8 behind
  const int first_channel = static_cast<int>(warp % groups) * kGroupChannels;
  const int left = static_cast<int>(min(rows - first, int64_t{tiles} * kTileRows));
  if (rows - first + lane / 4 <= 0) return;  // whole warps
  const __nv_bfloat16* dt = (reverse ? tensors.proj[1] : tensors.proj[0]) + first * proj_width + kPairs + quad * 4;
  __nv_bfloat16* out = (reverse ? tensors.delta[1] : tensors.delta[0]) + first * d_inner + first_channel + quad * 8;
  const int columns = proj_width - kPairs - quad * 4;  // from the lane's first one on
  Four next[kSteps][2];
  const auto load = [&](int tile) {
#pragma unroll
    for (int k = 0; k < 2 * kSteps; ++k) {
      const int row = tile * kTileRows + k % 2 * 8;
      next[k / 2][k % 2] =
          load_vector<__nv_bfloat16, 4>(row < left && k / 2 * 16 < columns, dt + (row * proj_width + k / 2 * 16));
    }
  };
  load(0);
  const StepWeights<kSteps> w(reverse ? tensors.weight[1] : tensors.weight[0],
                              reverse ? tensors.bias[1] : tensors.bias[0], first_channel, dt_rank, lane);
#pragma unroll 2
  for (int tile = 0; tile < tiles; ++tile) {
    unsigned a[kSteps][4];
    float v[2][2 * kGroups];
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
#pragma unroll
      for (int i = 0; i < 4; ++i) a[k][i] = next[k][i % 2].word[i / 2];
    }
    load(tile + 1);
#pragma unroll
    for (int j = 0; j < kGroups; ++j) {
      float sum[4];
      multiply_add(a[0], w.low[j][0], w.bias[j], sum);
#pragma unroll
      for (int k = 1; k < kSteps; ++k) multiply_add(a[k], w.low[j][k], sum, sum);
#pragma unroll
      for (int k = 0; k < kSteps; ++k) multiply_add(a[k], w.high[j][k], sum, sum);
#pragma unroll
      for (int i = 0; i < 4; ++i) v[i / 2][2 * j + i % 2] = scan::softplus_coarsely(sum[i]);
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = tile * kTileRows + i * 8;
      if (row < left) *reinterpret_cast<Eight*>(out + row * d_inner) = Eight::of(v[i]);
    }
  }
}

template <typename Fn>
void dispatch_rank(int64_t dt_rank, Fn&& fn) {
  if (dt_rank <= 4) return fn.template operator()<4>();
  if (dt_rank <= 12) return fn.template operator()<12>();
  if (dt_rank <= 24) return fn.template operator()<24>();
  return fn.template operator()<48>();
}

template <typename T>
__global__ void __launch_bounds__(kBlock)
    block_pairs_kernel(const float* __restrict__ partials, const T* __restrict__ ddt, const T* __restrict__ proj,
                       T* __restrict__ dproj, T* __restrict__ dt, int64_t rows, int groups, int dt_rank,
                       int proj_width) {
  const int quads = proj_width / 4, strands = kBlock / quads, strand = threadIdx.x / quads;
  const int column = static_cast<int>(threadIdx.x) % quads * 4, first = column - kPairs;  // first: column of dt
  if (strand >= strands) return;
  const int64_t step = int64_t{gridDim.x} * strands;
  for (int64_t row = int64_t{blockIdx.x} * strands + strand; row < rows; row += step) {
    float v[4] = {};
    if (first < 0) {
      const float* source = partials + row * kPairs + column;
      for (int group = 0; group < groups; ++group, source += rows * kPairs) {
        const float4 four = load_four(source);
        v[0] += four.x, v[1] += four.y, v[2] += four.z, v[3] += four.w;
      }
    } else {
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        if (first + c >= dt_rank) continue;
        const int64_t at = row * dt_rank + first + c;
        v[c] = to_float(ddt[at]);
        dt[at] = proj[row * proj_width + column + c];
      }
    }
    *reinterpret_cast<Vector<T, 4>*>(dproj + row * proj_width + column) = Vector<T, 4>::of(v);
  }
}

template <typename T>
__global__ void __launch_bounds__(kBlock)
    block_halo_kernel(HaloTensors tensors, int64_t rows, int64_t columns, int64_t lead, int64_t trail) {
  const int64_t i = int64_t{blockIdx.x} * kBlock + threadIdx.x;
  if (i >= (lead + trail) * columns) return;
  const int64_t behind = (rows - trail) * columns, at = i < lead * columns ? i : behind + i - lead * columns;
  static_cast<T*>(tensors.data[blockIdx.y])[at] = from_float<T>(0.0f);
}

}  // namespace

void clear_halo(const HaloTensors& tensors, int64_t rows, int64_t columns, int64_t lead, int64_t trail, DType dtype,
                Stream stream) {
  if (lead + trail == 0) return;
  const dim3 grid(static_cast<unsigned>(ceil_div((lead + trail) * columns, kBlock)), 5);
  dispatch_float(dtype, [&]<typename T>() {
    block_halo_kernel<T><<<grid, kBlock, 0, raw(stream)>>>(tensors, rows, columns, lead, trail);
    PM_CHECK_LAUNCH("block_halo");
  });
}

template <typename T, int kRank, int kChannels>
void launch_steps(const Sequences& s, const StepTensors<T>& tensors, int dt_rank, Stream stream) {
  const int columns = s.d_inner / kChannels, channel_tiles = static_cast<int>(ceil_div(columns, kStepThreads));
  const int width = static_cast<int>(ceil_div(columns, channel_tiles)), strands = kStepThreads / width;
  const int64_t row_blocks = std::clamp<int64_t>(ceil_div(s.rows(), int64_t{strands} * kStepRows), 1, kMaxGrid);
  const dim3 grid(static_cast<unsigned>(row_blocks * channel_tiles), 2);
  block_step_kernel<T, kRank, kChannels><<<grid, kStepThreads, 0, raw(stream)>>>(tensors, s.rows(), s.d_inner, width,
                                                                                 channel_tiles, dt_rank, s.proj_width);
  PM_CHECK_LAUNCH("block_step");
}

template <int kSteps>
void launch_step_products(const Sequences& s, const StepTensors<__nv_bfloat16>& tensors, int dt_rank, Stream stream) {
  const int64_t groups = s.d_inner / kGroupChannels;
  const auto warps = [&](int tiles) { return ceil_div(s.rows(), int64_t{tiles} * kTileRows) * groups; };
  int tiles = kMostTiles;
  while (tiles > 1 && warps(tiles) < kEnoughWarps) tiles /= 2;
  const dim3 grid(static_cast<unsigned>(ceil_div(warps(tiles), kStepThreads / kWarp)), 2);
  block_step_matrix_kernel<kSteps>
      <<<grid, kStepThreads, 0, raw(stream)>>>(tensors, s.rows(), s.d_inner, tiles, dt_rank, s.proj_width);
  PM_CHECK_LAUNCH("block_step");
}

void step_sizes(const Sequences& s, const MambaBlockArgs& args, const Projected (&rows)[2], Stream stream) {
  dispatch_float(args.dtype, [&]<typename T>() {
    StepTensors<T> t{};
    for (int p = 0; p < 2; ++p) {
      t.proj[p] = static_cast<const T*>(rows[p].proj);
      t.delta[p] = static_cast<T*>(rows[p].delta);
      t.weight[p] = static_cast<const float*>(args.direction[p].dt_weight);
      t.bias[p] = static_cast<const float*>(args.direction[p].dt_bias);
    }
    const int dt_rank = static_cast<int>(args.dt_rank);
    if constexpr (std::is_same_v<T, __nv_bfloat16>) {
      if (s.d_inner % kGroupChannels == 0) {
        if (dt_rank <= 16) return launch_step_products<1>(s, t, dt_rank, stream);
        if (dt_rank <= 32) return launch_step_products<2>(s, t, dt_rank, stream);
        return launch_step_products<3>(s, t, dt_rank, stream);
      }
    }
    dispatch_rank(args.dt_rank, [&]<int kRank>() {
      constexpr int kMost = kRank <= 12 ? 4 : kRank <= 24 ? 2 : 1;  // within the registers
      if (s.d_inner % kMost == 0) return launch_steps<T, kRank, kMost>(s, t, dt_rank, stream);
      if (kMost == 4 && s.d_inner % 2 == 0) return launch_steps<T, kRank, 2>(s, t, dt_rank, stream);
      launch_steps<T, kRank, 1>(s, t, dt_rank, stream);
    });
  });
}

void gather_pair_grads(const Sequences& s, const MambaBlockArgs& args, const PairGrads& g, Stream stream) {
  const int64_t blocks = std::clamp<int64_t>(ceil_div(s.rows(), kBlock / (s.proj_width / 4)), 1, kMaxGrid);
  dispatch_float(args.dtype, [&]<typename T>() {
    block_pairs_kernel<T><<<static_cast<unsigned>(blocks), kBlock, 0, raw(stream)>>>(
        g.partials, static_cast<const T*>(g.ddt), static_cast<const T*>(g.proj), static_cast<T*>(g.dproj),
        static_cast<T*>(g.dt), s.rows(), s.groups, static_cast<int>(args.dt_rank), s.proj_width);
    PM_CHECK_LAUNCH("block_pairs");
  });
}

}  // namespace pm::cuda::block
