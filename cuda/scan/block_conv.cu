// The two causal convolutions of the fused Mamba block, from x to u of both directions, and their gradient. Four taps.
//
// maths   : pre_f[i] = bias_f + sum_j w_f[j] * x[i - j],   pre_r[i] = bias_r + sum_j w_r[j] * x[i + j],   u = silu(pre)
//           dpre = du * silu'(pre)
//           dx[i] = sum_j w_f[j] * dpre_f[i + j] + sum_j w_r[j] * dpre_r[i - j];   dw_f[j] = sum_i dpre_f[i] * x[i - j]
//           x outside the sequence is zero; w[j] is column d_conv - 1 - j of the weight.
// launch  : forward: a thread makes kRun tokens of a channel in both directions from kRun + 6 values of x.
//           gradient: a thread walks kGradRun tokens with three more at either end, dx three tokens behind; a block holds
//           `strands` such runs of `width` channels and takes every gridDim-th tile; one row of partial sums per block.
// traffic : forward reads x, writes u twice; gradient reads x and four gradients, writes dx. Bandwidth-bound: floor at 4.25
//           TB/s 2.8 and 5.6 us per 1e6 float32 values of x.
// numerics: float32. deterministic: partial sums in a fixed order, column_sum adds the blocks.
#include "cuda/scan/block.cuh"

namespace pm::cuda::block {
namespace {

constexpr int kTaps = 4, kHalo = kTaps - 1;
constexpr int kRun = 4;
constexpr int kGradRun = 32, kGradGroup = 4;
constexpr int64_t kGradBlocks = 132 * 8;
constexpr int kColumns = 2 * (kTaps + 1);  // per channel: dw_f, dw_r, dbias_f, dbias_r

struct Taps {
  const float *weight[2], *bias[2];

  __device__ void load(int64_t channel, float (&forward)[kTaps], float (&reverse)[kTaps], float (&offset)[2]) const {
#pragma unroll
    for (int j = 0; j < kTaps; ++j) {
      forward[j] = weight[0][channel * kTaps + kHalo - j];
      reverse[j] = weight[1][channel * kTaps + kHalo - j];
    }
    offset[0] = bias[0][channel];
    offset[1] = bias[1][channel];
  }
};

Taps taps_of(const MambaBlockArgs& args) {
  Taps taps;
  for (int p = 0; p < 2; ++p) {
    taps.weight[p] = static_cast<const float*>(args.direction[p].conv_weight);
    taps.bias[p] = static_cast<const float*>(args.direction[p].conv_bias);
  }
  return taps;
}

template <typename T>
__global__ void __launch_bounds__(kBlock)
    block_conv_kernel(const T* __restrict__ x, const __grid_constant__ Taps taps, T* __restrict__ u_forward,
                      T* __restrict__ u_reverse, int64_t seq_len, int d_inner, int64_t sequence_blocks) {
  const int64_t sequence = blockIdx.x / sequence_blocks, flat = blockIdx.x % sequence_blocks * kBlock;
  const int offset = static_cast<int>(flat % d_inner) + static_cast<int>(threadIdx.x);
  const int channel = offset % d_inner;
  const int64_t first = (flat / d_inner + offset / d_inner) * kRun;
  if (first >= seq_len) return;
  float forward[kTaps], reverse[kTaps], bias[2], window[kRun + 2 * kHalo];
  taps.load(channel, forward, reverse, bias);
  const int64_t at = (sequence * seq_len + first) * d_inner + channel;
#pragma unroll
  for (int k = 0; k < kRun + 2 * kHalo; ++k) {
    const int64_t token = first + k - kHalo;
    window[k] = token >= 0 && token < seq_len ? to_float(x[at + (k - kHalo) * int64_t{d_inner}]) : 0.0f;
  }
#pragma unroll
  for (int k = 0; k < kRun; ++k) {
    float f = bias[0], r = bias[1];
#pragma unroll
    for (int j = 0; j < kTaps; ++j) {
      f = fmaf(forward[j], window[k + kHalo - j], f);
      r = fmaf(reverse[j], window[k + kHalo + j], r);
    }
    if (first + k < seq_len) {
      u_forward[at + k * int64_t{d_inner}] = from_float<T>(f * sigmoid(f));
      u_reverse[at + k * int64_t{d_inner}] = from_float<T>(r * sigmoid(r));
    }
  }
}

struct GradTiling {
  int64_t seq_len, sequence_tiles, tiles;
  int d_inner, width, strands, channel_tiles;
};

template <typename T>
struct ConvGradTensors {
  const T *x, *du[2], *du_proj[2];
  T* dx;
};

// One run of one channel: dx, and what it adds to the ten sums of the channel.
template <typename T>
struct GradRun {
  float forward[kTaps], reverse[kTaps], bias[2];
  float sums[kColumns] = {};

  __device__ void walk(const ConvGradTensors<T>& t, int64_t seq_len, int64_t first, int64_t at, int64_t stride) {
    // Windows of one group of kGradGroup tokens i and what came before: x from i - 3 to i + 3, dpre_f from i - 3, dpre_r
    // from i - 6.
    float x[kGradGroup + 2 * kHalo], f[kGradGroup + kHalo] = {}, r[kGradGroup + 2 * kHalo] = {};
    const auto input = [&](int64_t token) {
      return token >= 0 && token < seq_len ? to_float(t.x[at + (token - first) * stride]) : 0.0f;
    };
#pragma unroll
    for (int k = 0; k < 2 * kHalo; ++k) x[k] = input(first - 2 * kHalo + k);
#pragma unroll 1
    for (int64_t group = first - kHalo; group < first + kGradRun + kHalo; group += kGradGroup) {
      float upstream_f[kGradGroup], upstream_r[kGradGroup];
#pragma unroll
      for (int k = 0; k < kGradGroup; ++k) {
        const int64_t token = group + k, place = at + (token - first) * stride;
        const bool exists = token >= 0 && token < seq_len;
        const bool wanted_f = exists && token >= first, wanted_r = exists && token < first + kGradRun;
        x[2 * kHalo + k] = input(token + kHalo);
        upstream_f[k] = wanted_f ? to_float(t.du[0][place]) + to_float(t.du_proj[0][place]) : 0.0f;
        upstream_r[k] = wanted_r ? to_float(t.du[1][place]) + to_float(t.du_proj[1][place]) : 0.0f;
      }
#pragma unroll
      for (int k = 0; k < kGradGroup; ++k) {
        float pre_f = bias[0], pre_r = bias[1];
#pragma unroll
        for (int j = 0; j < kTaps; ++j) {
          pre_f = fmaf(forward[j], x[k + kHalo - j], pre_f);
          pre_r = fmaf(reverse[j], x[k + kHalo + j], pre_r);
        }
        const float dpre_f = upstream_f[k] * silu_grad(pre_f), dpre_r = upstream_r[k] * silu_grad(pre_r);
        f[kHalo + k] = dpre_f;
        r[2 * kHalo + k] = dpre_r;
        const bool own = group + k >= first && group + k < first + kGradRun;  // the others' sums are their own run's
        const float own_f = own ? dpre_f : 0.0f, own_r = own ? dpre_r : 0.0f;
        float sum = 0.0f;
#pragma unroll
        for (int j = 0; j < kTaps; ++j) {
          sums[j] = fmaf(own_f, x[k + kHalo - j], sums[j]);
          sums[kTaps + j] = fmaf(own_r, x[k + kHalo + j], sums[kTaps + j]);
          sum = fmaf(forward[j], f[k + j], fmaf(reverse[j], r[k + kHalo - j], sum));
        }
        sums[2 * kTaps] += own_f;
        sums[2 * kTaps + 1] += own_r;
        const int64_t target = group + k - kHalo;
        if (target >= first && target < min(first + kGradRun, seq_len))
          t.dx[at + (target - first) * stride] = from_float<T>(sum);
      }
#pragma unroll
      for (int k = 0; k < 2 * kHalo; ++k) {
        x[k] = x[kGradGroup + k];
        r[k] = r[kGradGroup + k];
        if (k < kHalo) f[k] = f[kGradGroup + k];
      }
    }
  }
};

template <typename T>
__global__ void __launch_bounds__(kBlock, 2)
    block_conv_grad_kernel(const __grid_constant__ ConvGradTensors<T> tensors, const __grid_constant__ Taps taps,
                           GradTiling t, unsigned row_blocks, float* __restrict__ partials) {
  __shared__ float shared[kBlock];
  const unsigned row_block = blockIdx.x / t.channel_tiles;
  const int strand = threadIdx.x / t.width, channel = blockIdx.x % t.channel_tiles * t.width + threadIdx.x % t.width;
  const bool active = strand < t.strands && channel < t.d_inner;
  GradRun<T> run;
  if (active) taps.load(channel, run.forward, run.reverse, run.bias);
  for (int64_t tile = row_block; active && tile < t.tiles; tile += row_blocks) {
    const int64_t first = (tile % t.sequence_tiles * t.strands + strand) * kGradRun;
    if (first >= t.seq_len) continue;
    run.walk(tensors, t.seq_len, first, (tile / t.sequence_tiles * t.seq_len + first) * t.d_inner + channel, t.d_inner);
  }
#pragma unroll
  for (int c = 0; c < kColumns; ++c) {
    __syncthreads();
    shared[threadIdx.x] = active ? run.sums[c] : 0.0f;
    __syncthreads();
    if (!active || strand != 0) continue;
    float total = 0.0f;
    for (int s = 0; s < t.strands; ++s) total += shared[s * t.width + threadIdx.x];
    partials[(int64_t{row_block} * t.d_inner + channel) * kColumns + c] = total;
  }
}

struct ConvGradOut {
  float *weight[2], *bias[2];
};
__global__ void __launch_bounds__(kBlock)
    block_conv_sums_kernel(const float* __restrict__ sums, int64_t d_inner, const __grid_constant__ ConvGradOut out) {
  const int64_t i = int64_t{blockIdx.x} * kBlock + threadIdx.x, channel = i / kColumns;
  const int column = static_cast<int>(i % kColumns);
  if (channel >= d_inner) return;
  if (column < kTaps) out.weight[0][channel * kTaps + kHalo - column] = sums[i];
  if (column >= kTaps && column < 2 * kTaps) out.weight[1][channel * kTaps + kHalo - (column - kTaps)] = sums[i];
  if (column == 2 * kTaps) out.bias[0][channel] = sums[i];
  if (column == 2 * kTaps + 1) out.bias[1][channel] = sums[i];
}

}  // namespace

void convolve(const Sequences& s, const MambaBlockArgs& args, const void* x, const Projected (&out)[2], Stream stream) {
  const int64_t sequence_blocks = ceil_div(ceil_div(s.seq_len, kRun) * s.d_inner, kBlock);
  dispatch_float(args.dtype, [&]<typename T>() {
    block_conv_kernel<T><<<static_cast<unsigned>(s.batch * sequence_blocks), kBlock, 0, raw(stream)>>>(
        static_cast<const T*>(x), taps_of(args), static_cast<T*>(out[0].u), static_cast<T*>(out[1].u), s.seq_len,
        s.d_inner, sequence_blocks);
    PM_CHECK_LAUNCH("block_conv");
  });
}

void convolve_grad(const Sequences& s, const MambaBlockArgs& args, const void* x, const ConvGrads& grads,
                   Stream stream) {
  GradTiling t{};
  t.seq_len = s.seq_len;
  t.d_inner = s.d_inner;
  t.channel_tiles = static_cast<int>(ceil_div(s.d_inner, kBlock));
  t.width = static_cast<int>(ceil_div(s.d_inner, t.channel_tiles));
  t.strands = kBlock / t.width;
  t.sequence_tiles = ceil_div(s.seq_len, int64_t{t.strands} * kGradRun);
  t.tiles = s.batch * t.sequence_tiles;
  const int64_t row_blocks = std::min(t.tiles, std::max<int64_t>(1, kGradBlocks / t.channel_tiles));
  const int64_t columns = int64_t{s.d_inner} * kColumns;
  const Scratch<float> partials(stream, row_blocks * columns), sums(stream, columns);
  dispatch_float(args.dtype, [&]<typename T>() {
    const ConvGradTensors<T> tensors{static_cast<const T*>(x),
                                     {static_cast<const T*>(grads.du[0]), static_cast<const T*>(grads.du[1])},
                                     {static_cast<const T*>(grads.du_proj[0]), static_cast<const T*>(grads.du_proj[1])},
                                     static_cast<T*>(grads.dx)};
    block_conv_grad_kernel<T><<<static_cast<unsigned>(row_blocks * t.channel_tiles), kBlock, 0, raw(stream)>>>(
        tensors, taps_of(args), t, static_cast<unsigned>(row_blocks), partials.get());
    PM_CHECK_LAUNCH("block_conv_grad");
  });
  column_sum(partials.get(), row_blocks, columns, sums.get(), stream);
  const ConvGradOut out{{grads.conv_weight[0], grads.conv_weight[1]}, {grads.conv_bias[0], grads.conv_bias[1]}};
  block_conv_sums_kernel<<<static_cast<unsigned>(ceil_div(columns, kBlock)), kBlock, 0, raw(stream)>>>(sums.get(),
                                                                                                       s.d_inner, out);
  PM_CHECK_LAUNCH("block_conv sums");
}

}  // namespace pm::cuda::block
