// The two causal convolutions of the fused Mamba block, from x to u of both directions, and their gradient. Four taps.
//
// maths   : pre_f[i] = bias_f + sum_j w_f[j] * x[i - j],   pre_r[i] = bias_r + sum_j w_r[j] * x[i + j],   u = silu(pre)
//           dpre = du * silu'(pre)
//           dx[i] = sum_j w_f[j] * dpre_f[i + j] + sum_j w_r[j] * dpre_r[i - j];   dw_f[j] = sum_i dpre_f[i] * x[i - j]
//           x outside the sequence is zero; w[j] is column d_conv - 1 - j of the weight.
// walk    : a thread walks a run of tokens of kCount neighbouring channels. Step i makes token i + 3 of the forward direction
//           and token i of the reverse one: both need x[i] to x[i + 3], and dx[i] needs dpre_f[i] to dpre_f[i + 3] and
//           dpre_r[i - 3] to dpre_r[i]. So four registers hold each, token t in register t modulo 4, and nothing moves.
//
//             tokens of the run     -3 -2 -1  0  1  2  3 . . .  run-1 | next run
//             forward                                  |-----------------------|    (tokens 0 to 2 are the run's before, if any)
//             reverse and dx                  |-----------------------|
//
//           The gradient repeats three steps before the run for dpre_f and dpre_r. Loads run 8 (gradient: 4) tokens ahead.
// launch  : a block holds `strands` runs of `width` threads; the gradient's take every gridDim-th tile, one row of partial
//           sums per block. 96 threads are whole rows of 6 to 96 words, or a part of one.
// traffic : forward reads x, writes u twice; gradient reads x and four gradients, writes dx: 6 and 12 bytes a channel and
//           token in bf16. Bandwidth-bound: floor at 3.0 TB/s 2.0 and 4.0 us per 1e6 bf16 values of x.
// issue   : counted in SASS, per 32 channels and token of a run of 32, its beginning included: forward 31 instructions (bf16)
//           and 40 (float32), gradient 77 and 90. At 3.0 TB/s an H100 moves a warp's bytes of bf16 in 59 and 118 issue slots.
// measured: H200, bf16, one slide, d_inner 96, 1.25 M tokens, forward: 186 us, 3.9 TB/s.
// numerics: float32. deterministic: partial sums in a fixed order, column_sum adds the blocks.
#include "cuda/scan/block.cuh"

namespace pm::cuda::block {
namespace {

constexpr int kTaps = 4, kHalo = kTaps - 1;
constexpr int kThreads = 96;
constexpr int kAhead = 8, kGradAhead = kTaps;           // tokens loaded ahead, multiples of kTaps
constexpr int kShortestRun = 8, kLongestRun = 32;       // multiples of both
constexpr int64_t kEnoughThreads = 132 * 6 * kThreads;  // for long runs
constexpr int64_t kGradBlocks = 132 * 10;
constexpr int kColumns = 2 * (kTaps + 1);  // per channel: dw_f, dw_r, dbias_f, dbias_r

// Runs of a launch. Tile: `strands` runs of `width` threads.
struct Tiling {
  int64_t seq_len, tiles;
  unsigned sequence_tiles, channel_tiles;
  int d_inner, width, strands, run;
};

Tiling tiling_of(const Sequences& s, int channels_per_thread) {
  Tiling t{};
  const int64_t columns = s.d_inner / channels_per_thread;
  t.seq_len = s.seq_len;
  t.d_inner = s.d_inner;
  t.run = kLongestRun;
  while (t.run > kShortestRun && s.rows() * columns < kEnoughThreads * t.run) t.run /= 2;
  t.channel_tiles = static_cast<unsigned>(ceil_div(columns, kThreads));
  t.width = static_cast<int>(ceil_div(columns, t.channel_tiles));
  t.strands = kThreads / t.width;
  t.sequence_tiles = static_cast<unsigned>(ceil_div(s.seq_len, int64_t{t.strands} * t.run));
  t.tiles = s.batch * t.sequence_tiles;
  return t;
}

// Calls fn with the channels of a thread: as many as 4 bytes (gradient) or 8 hold, where rows are whole multiples.
template <int kMost, typename Fn>
void dispatch_count(int d_inner, Fn&& fn) {
  if (d_inner % kMost == 0) return fn.template operator()<kMost>();
  fn.template operator()<1>();
}

struct TapPointers {
  const float *weight[2], *bias[2];
};

TapPointers taps_of(const MambaBlockArgs& args) {
  TapPointers taps;
  for (int p = 0; p < 2; ++p) {
    taps.weight[p] = static_cast<const float*>(args.direction[p].conv_weight);
    taps.bias[p] = static_cast<const float*>(args.direction[p].conv_bias);
  }
  return taps;
}

// Taps of kCount channels, and the four values of x that they are applied to.
template <int kCount>
struct Taps {
  float forward[kCount][kTaps], reverse[kCount][kTaps], bias[2][kCount];
  float x[kTaps][kCount];  // token t in x[t % 4]

  __device__ __forceinline__ void load(const TapPointers& taps, int channel) {
#pragma unroll
    for (int c = 0; c < kCount; ++c) {
#pragma unroll
      for (int j = 0; j < kTaps; ++j) {
        forward[c][j] = taps.weight[0][(channel + c) * kTaps + kHalo - j];
        reverse[c][j] = taps.weight[1][(channel + c) * kTaps + kHalo - j];
      }
      bias[0][c] = taps.bias[0][channel + c];
      bias[1][c] = taps.bias[1][channel + c];
    }
  }
  template <typename T>
  __device__ __forceinline__ void put(int place, const Vector<T, kCount>& value) {
#pragma unroll
    for (int c = 0; c < kCount; ++c) x[place][c] = value[c];
  }
  // Step k modulo 4: token k + 3 of the forward direction, token k of the reverse one, before SiLU.
  __device__ __forceinline__ float ahead(int k, int c) const {
    float sum = bias[0][c];
#pragma unroll
    for (int j = 0; j < kTaps; ++j) sum = fmaf(forward[c][j], x[(k + kHalo - j) % kTaps][c], sum);
    return sum;
  }
  __device__ __forceinline__ float behind(int k, int c) const {
    float sum = bias[1][c];
#pragma unroll
    for (int j = 0; j < kTaps; ++j) sum = fmaf(reverse[c][j], x[(k + j) % kTaps][c], sum);
    return sum;
  }
};

template <typename T, int kCount>
__device__ __forceinline__ void store_silu(T* place, const float (&pre)[kCount]) {
  float u[kCount];
#pragma unroll
  for (int c = 0; c < kCount; ++c) u[c] = pre[c] * sigmoid(pre[c]);
  *reinterpret_cast<Vector<T, kCount>*>(place) = Vector<T, kCount>::of(u);
}

template <typename T, int kCount>
__global__ void __launch_bounds__(kThreads, 6)
    block_conv_kernel(const T* __restrict__ x, const __grid_constant__ TapPointers pointers, T* __restrict__ u_forward,
                      T* __restrict__ u_reverse, const __grid_constant__ Tiling t) {
  using V = Vector<T, kCount>;
  const unsigned tile = blockIdx.x / t.channel_tiles;
  const int strand = threadIdx.x / t.width,
            channel = static_cast<int>(blockIdx.x % t.channel_tiles * t.width + threadIdx.x % t.width) * kCount;
  const int64_t first = (tile % t.sequence_tiles * int64_t{t.strands} + strand) * t.run;
  if (strand >= t.strands || channel >= t.d_inner || first >= t.seq_len) return;
  const int64_t at = (tile / t.sequence_tiles * t.seq_len + first) * t.d_inner + channel;
  const int reverse_end = static_cast<int>(min(t.seq_len - first, int64_t{t.run})),
            forward_end = static_cast<int>(min(t.seq_len - first, int64_t{t.run + kHalo}));
  x += at, u_forward += at, u_reverse += at;
  const auto load = [&](int token) { return load_vector<T, kCount>(token < forward_end, x + token * t.d_inner); };
  Taps<kCount> taps;
  V start[kHalo], next[kAhead];
#pragma unroll
  for (int k = 0; k < kHalo; ++k) start[k] = load(k);
#pragma unroll
  for (int k = 0; k < kAhead; ++k) next[k] = load(k + kHalo);
  taps.load(pointers, channel);
#pragma unroll
  for (int c = 0; c < kCount; ++c) taps.x[1][c] = taps.x[2][c] = taps.x[3][c] = 0.0f;
#pragma unroll
  for (int k = 0; k < kHalo; ++k) {  // the forward direction's first tokens are another run's, but for the first
    taps.put(k, start[k]);
    if (first > 0 || k >= forward_end) continue;
    float f[kCount];
#pragma unroll
    for (int c = 0; c < kCount; ++c) f[c] = taps.ahead(k + 1, c);
    store_silu(u_forward + k * t.d_inner, f);
  }
#pragma unroll 1
  for (int base = 0; base < reverse_end; base += kAhead) {
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
      const int token = base + k;
      taps.put((k + kHalo) % kTaps, next[k]);
      next[k] = load(token + kHalo + kAhead);
      float f[kCount], r[kCount];
#pragma unroll
      for (int c = 0; c < kCount; ++c) f[c] = taps.ahead(k, c), r[c] = taps.behind(k, c);
      if (token + kHalo < forward_end) store_silu(u_forward + (token + kHalo) * t.d_inner, f);
      if (token < reverse_end) store_silu(u_reverse + token * t.d_inner, r);
    }
  }
}

template <typename T>
struct ConvGradTensors {
  const T *x, *du[2], *du_proj[2];
  T* dx;
};

// One run of kCount channels: dx, and what it adds to the ten sums of each.
template <typename T, int kCount>
struct GradRun {
  using V = Vector<T, kCount>;
  Taps<kCount> taps;
  float f[kTaps][kCount], r[kTaps][kCount];  // dpre, as taps.x
  float sums[kColumns][kCount] = {};
  V x[kGradAhead], du[2][kGradAhead], du_proj[2][kGradAhead];  // of the coming steps
  ConvGradTensors<T> t;                                        // from the first token of the run
  int stride, reverse_end, forward_end;
  bool begins;  // the sequence

  // What step i needs: tokens i + 3 of x and of the forward direction, token i of the reverse one.
  __device__ __forceinline__ void load(int slot, int i) {
    const bool ahead = i + kHalo < forward_end, here = i < reverse_end && (i >= 0 || !begins);
    const int place = i * stride, place_ahead = place + kHalo * stride;
    x[slot] = load_vector<T, kCount>(ahead, t.x + place_ahead);
    du[0][slot] = load_vector<T, kCount>(ahead, t.du[0] + place_ahead);
    du_proj[0][slot] = load_vector<T, kCount>(ahead, t.du_proj[0] + place_ahead);
    du[1][slot] = load_vector<T, kCount>(here, t.du[1] + place);
    du_proj[1][slot] = load_vector<T, kCount>(here, t.du_proj[1] + place);
  }
  // kOwn false: a step before the run.
  template <bool kOwn>
  __device__ __forceinline__ void step(int k, int i) {
    float upstream[2][kCount], dx[kCount];
    taps.put((k + kHalo) % kTaps, x[k]);
#pragma unroll
    for (int c = 0; c < kCount; ++c) {
      upstream[0][c] = du[0][k][c] + du_proj[0][k][c];
      upstream[1][c] = du[1][k][c] + du_proj[1][k][c];
    }
    load(k, i + kGradAhead);
#pragma unroll
    for (int c = 0; c < kCount; ++c) {
      const float dpre_f = upstream[0][c] * silu_grad(taps.ahead(k, c)),
                  dpre_r = upstream[1][c] * silu_grad(taps.behind(k, c));
      f[(k + kHalo) % kTaps][c] = dpre_f;
      r[k][c] = dpre_r;
      const float own_f = kOwn || begins ? dpre_f : 0.0f;  // before the run: the sums of the run before, if any
      dx[c] = 0.0f;
#pragma unroll
      for (int j = 0; j < kTaps; ++j) {
        sums[j][c] = fmaf(own_f, taps.x[(k + kHalo - j) % kTaps][c], sums[j][c]);
        if constexpr (!kOwn) continue;
        sums[kTaps + j][c] = fmaf(dpre_r, taps.x[(k + j) % kTaps][c], sums[kTaps + j][c]);
        dx[c] = fmaf(taps.forward[c][j], f[(k + j) % kTaps][c], dx[c]);
        dx[c] = fmaf(taps.reverse[c][j], r[(k + kTaps - j) % kTaps][c], dx[c]);
      }
      sums[2 * kTaps][c] += own_f;
      if constexpr (kOwn) sums[2 * kTaps + 1][c] += dpre_r;
    }
    if (kOwn && i < reverse_end) *reinterpret_cast<V*>(t.dx + i * stride) = V::of(dx);
  }
  // at: element of the first token.
  __device__ __forceinline__ void walk(const ConvGradTensors<T>& tensors, const Tiling& tiling, int64_t first,
                                       int64_t at) {
    t = {tensors.x + at,
         {tensors.du[0] + at, tensors.du[1] + at},
         {tensors.du_proj[0] + at, tensors.du_proj[1] + at},
         tensors.dx + at};
    stride = tiling.d_inner;
    begins = first == 0;
    reverse_end = static_cast<int>(min(tiling.seq_len - first, int64_t{tiling.run}));
    forward_end = static_cast<int>(min(tiling.seq_len - first, int64_t{tiling.run + kHalo}));
    V before[kTaps];
#pragma unroll
    for (int k = 1; k < kTaps; ++k) before[k] = load_vector<T, kCount>(!begins, t.x + (k - kTaps) * stride);
#pragma unroll
    for (int k = 0; k < kTaps; ++k) load(k, k == 0 ? 0 : k - kTaps);
#pragma unroll
    for (int k = 1; k < kTaps; ++k) taps.put(k, before[k]);
#pragma unroll
    for (int k = 1; k < kTaps; ++k) step<false>(k, k - kTaps);
#pragma unroll 1
    for (int base = 0; base < reverse_end; base += kGradAhead) {
#pragma unroll
      for (int k = 0; k < kGradAhead; ++k) step<true>(k, base + k);
    }
  }
};

template <typename T, int kCount>
__global__ void __launch_bounds__(kThreads, 5)
    block_conv_grad_kernel(const __grid_constant__ ConvGradTensors<T> tensors,
                           const __grid_constant__ TapPointers pointers, const __grid_constant__ Tiling t,
                           unsigned row_blocks, float* __restrict__ partials) {
  __shared__ float shared[kColumns * kCount][kThreads];
  const unsigned row_block = blockIdx.x / t.channel_tiles;
  const int first_channel = static_cast<int>(blockIdx.x % t.channel_tiles) * t.width * kCount;
  const int strand = threadIdx.x / t.width, channel = first_channel + static_cast<int>(threadIdx.x) % t.width * kCount;
  const bool active = strand < t.strands && channel < t.d_inner;
  GradRun<T, kCount> run;
  if (active) run.taps.load(pointers, channel);
  for (int64_t tile = row_block; active && tile < t.tiles; tile += row_blocks) {
    const unsigned sequence = static_cast<unsigned>(tile) / t.sequence_tiles,
                   place = static_cast<unsigned>(tile) % t.sequence_tiles;
    const int64_t first = (place * int64_t{t.strands} + strand) * t.run;
    if (first < t.seq_len) run.walk(tensors, t, first, (sequence * t.seq_len + first) * t.d_inner + channel);
  }
#pragma unroll
  for (int column = 0; column < kColumns; ++column) {
#pragma unroll
    for (int c = 0; c < kCount; ++c) shared[column * kCount + c][threadIdx.x] = run.sums[column][c];
  }
  __syncthreads();
  for (int i = threadIdx.x; i < t.width * kCount * kColumns; i += kThreads) {
    const int column = i % kColumns, local = i / kColumns;
    float total = 0.0f;
    for (int s = 0; s < t.strands; ++s) {
      total += shared[column * kCount + local % kCount][s * t.width + local / kCount];
    }
    if (first_channel + local >= t.d_inner) continue;
    partials[(int64_t{row_block} * t.d_inner + first_channel + local) * kColumns + column] = total;
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
  dispatch_float(args.dtype, [&]<typename T>() {
    dispatch_count<8 / sizeof(T)>(s.d_inner, [&]<int kCount>() {
      const Tiling t = tiling_of(s, kCount);
      block_conv_kernel<T, kCount><<<static_cast<unsigned>(t.tiles * t.channel_tiles), kThreads, 0, raw(stream)>>>(
          static_cast<const T*>(x), taps_of(args), static_cast<T*>(out[0].u), static_cast<T*>(out[1].u), t);
      PM_CHECK_LAUNCH("block_conv");
    });
  });
}

void convolve_grad(const Sequences& s, const MambaBlockArgs& args, const void* x, const ConvGrads& grads,
                   Stream stream) {
  const int64_t columns = int64_t{s.d_inner} * kColumns;
  const Scratch<float> sums(stream, columns);
  dispatch_float(args.dtype, [&]<typename T>() {
    dispatch_count<4 / sizeof(T)>(s.d_inner, [&]<int kCount>() {
      const Tiling t = tiling_of(s, kCount);
      const int64_t row_blocks = std::min(t.tiles, std::max<int64_t>(1, kGradBlocks / t.channel_tiles));
      const Scratch<float> partials(stream, row_blocks * columns);
      const ConvGradTensors<T> tensors{
          static_cast<const T*>(x),
          {static_cast<const T*>(grads.du[0]), static_cast<const T*>(grads.du[1])},
          {static_cast<const T*>(grads.du_proj[0]), static_cast<const T*>(grads.du_proj[1])},
          static_cast<T*>(grads.dx)};
      const auto blocks = static_cast<unsigned>(row_blocks * t.channel_tiles);
      block_conv_grad_kernel<T, kCount><<<blocks, kThreads, 0, raw(stream)>>>(
          tensors, taps_of(args), t, static_cast<unsigned>(row_blocks), partials.get());
      PM_CHECK_LAUNCH("block_conv_grad");
      column_sum(partials.get(), row_blocks, columns, sums.get(), stream);
    });
  });
  const ConvGradOut out{{grads.conv_weight[0], grads.conv_weight[1]}, {grads.conv_bias[0], grads.conv_bias[1]}};
  block_conv_sums_kernel<<<static_cast<unsigned>(ceil_div(columns, kBlock)), kBlock, 0, raw(stream)>>>(sums.get(),
                                                                                                       s.d_inner, out);
  PM_CHECK_LAUNCH("block_conv sums");
}

}  // namespace pm::cuda::block
