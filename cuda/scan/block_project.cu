// What lies between the convolutions and the scans of the fused Mamba block, beside the matrix products: the step sizes, and
// the way back to projected rows (their layout: block_weights.cu).
//
// step_sizes        : delta = softplus(dt_weight dt + dt_bias). A thread keeps the row of dt_weight of its channel in registers
//                     and walks rows; dt is the same for all channels of a row, so its loads are broadcasts. Writes
//                     rows * d_inner values per direction: bandwidth-bound, 0.94 us per 1e6 float32 at 4.25 TB/s.
// gather_pair_grads : dproj from the partial dB, dC of the channel groups and from ddt; one thread per value.
// numerics          : float32; softplus by expf and a series of log1p. deterministic: fixed order of the groups.
#include "cuda/scan/block.cuh"

namespace pm::cuda::block {
namespace {

constexpr int kPairs = 2 * kStates;
constexpr int kStepThreads = 128;
constexpr int kStepRows = 16;  // rows that a thread makes at least, where there are enough

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

template <typename T, int kCount>
struct alignas(sizeof(T) * kCount) Pack {
  T v[kCount];
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
    Pack<T, kChannels> pack;
#pragma unroll
    for (int c = 0; c < kChannels; ++c) pack.v[c] = from_float<T>(scan::softplus(sum[c]));
    *reinterpret_cast<Pack<T, kChannels>*>(out) = pack;
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
  const int64_t step = int64_t{gridDim.x} * kBlock;
  for (int64_t i = int64_t{blockIdx.x} * kBlock + threadIdx.x; i < rows * proj_width; i += step) {
    const int64_t row = i / proj_width;
    const int column = static_cast<int>(i - row * proj_width), r = column - kPairs;
    float value = 0.0f;
    if (r < 0) {
      for (int group = 0; group < groups; ++group) value += partials[(group * rows + row) * kPairs + column];
    } else if (r < dt_rank) {
      value = to_float(ddt[row * dt_rank + r]);
      dt[row * dt_rank + r] = proj[i];
    }
    dproj[i] = from_float<T>(value);
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
    dispatch_rank(args.dt_rank, [&]<int kRank>() {
      constexpr int kMost = kRank <= 12 ? 4 : kRank <= 24 ? 2 : 1;  // within the registers
      if (s.d_inner % kMost == 0) return launch_steps<T, kRank, kMost>(s, t, dt_rank, stream);
      if (kMost == 4 && s.d_inner % 2 == 0) return launch_steps<T, kRank, 2>(s, t, dt_rank, stream);
      launch_steps<T, kRank, 1>(s, t, dt_rank, stream);
    });
  });
}

void gather_pair_grads(const Sequences& s, const MambaBlockArgs& args, const PairGrads& g, Stream stream) {
  dispatch_float(args.dtype, [&]<typename T>() {
    block_pairs_kernel<T><<<grid_for(s.rows() * s.proj_width), kBlock, 0, raw(stream)>>>(
        g.partials, static_cast<const T*>(g.ddt), static_cast<const T*>(g.proj), static_cast<T*>(g.dproj),
        static_cast<T*>(g.dt), s.rows(), s.groups, static_cast<int>(args.dt_rank), s.proj_width);
    PM_CHECK_LAUNCH("block_pairs");
  });
}

}  // namespace pm::cuda::block
