// From tokens to what the scans of the fused Mamba block read, in one kernel, for narrow layers: channels C = 3, 6, 12, 24,
// d_inner E = 2 C, dt_rank up to 4. Wider layers go through rms_norm, linear, block_conv.cu and block_project.cu; maths in
// engine/ops/scan/mamba_block.h.
//
// tile    : a block takes kCore tokens of one sequence at a time, never of two. The convolutions look three tokens either
//           way, so x is made for kRows >= kCore + 6 rows; row r is token first + r - 3. Rows outside the sequence are zero.
//
//             row     0  1  2 | 3  . . . . . . . . kCore + 2 | . . kRows - 1
//             token   - halo  | first  . .  first + kCore - 1 |   halo
//                     x       | x, and everything that is written | x
//
// threads : two halves of kLanes threads; lane l of either half has rows l and l + kLanes, later tokens l and l + kLanes,
//           with all their channels in registers, so that a weight read from shared memory (the same address in a whole
//           warp) serves two tokens. The halves share the work, not the tokens:
//
//                        half 0                              half 1
//             norm       hn of its two rows                  the same again: 2 C multiplications
//             in_proj    x to shared memory (hn, x out)      z out
//             ---------- barrier of the block: x is there ---------------------
//             conv, silu u forward out                       u reverse out
//             x_proj     B, C, dt forward out                B, C, dt reverse out
//             softplus   delta forward out                   delta reverse out
//
//           "out": rows go to the half's stage in shared memory, then to memory 16 bytes a thread (block_rows.cuh). Rows of
//           36 columns, and of 6 and 12 channels, fall into different banks; 24 and 48 channels cost two to four turns.
// launch  : at most kMaxGrid blocks, each looping over tiles; 248 tokens a tile (C = 24: 120). One sequence of 50,176 tokens
//           is 203 blocks of C = 3, 128 of them 25,984 tiles.
// shared  : bytes of     weights   x        stages bf16 / f32    in all
//             C =  3     2.8 KB     6.1 KB  35.7 / 71.5 KB        45 /  80 KB     256 threads
//             C =  6     5.2 KB    12.3 KB  35.7 / 71.5 KB        53 /  89 KB     256 threads
//             C = 12    11.2 KB    24.6 KB  35.7 / 71.5 KB        72 / 107 KB     256 threads
//             C = 24    27.0 KB    24.6 KB  23.1 / 46.1 KB        75 /  98 KB     128 threads
//           The tokens of a tile lie where the stages are, before anything is staged.
// count   : a token, C = 3, bf16. memory: read 6, write z 12, u 24, delta 24, proj 144: 210 bytes.
//           multiply-adds: in_proj 4 C^2, conv 16 C, x_proj 144 C, dt_proj 16 C: 564 (C = 24: 6,528); 48 special functions.
//           shared memory accesses of a warp for 32 tokens: 90 of weights, 48 of x, about 50 into and 50 out of the stages.
//           Floor for 128 images of 224 x 224 (6.4e6 tokens): 1.35 GB, 0.40 ms at 3.35 TB/s; instructions 0.26 ms.
//           Measured (ncu, H100, bf16, those images): 0.60, 0.51, 0.57, 0.83 ms for C = 3, 6, 12, 24; before, as separate
//           kernels, 1.6 ms for C = 3. C = 24 is bound by multiply-adds, not by memory. H200, one slide (2.0e7 tokens in
//           layer 1): 1.44, 1.22, 1.36, 1.88 ms; C = 3 moves its bytes at 69 % of the copy rate.
// registers: 64, 80, 125, 213 a thread, none spilled: 4, 3, 2, 2 blocks a multiprocessor (float32 at most 2).
// numerics: float32; hn and x are rounded to the storage type, as the way back reads them from memory. softplus: block_project.cu.
// deterministic: no atomics, every value by one thread in a fixed order.
#include "cuda/scan/block.cuh"
#include "cuda/scan/block_rows.cuh"

namespace pm::cuda::block {
namespace {

constexpr int kTaps = 4, kHalo = kTaps - 1;
constexpr int kTokens = 2;  // of a thread
constexpr int kRank = 4;    // dt columns, those behind dt_rank are zero
static_assert(kRank == kNarrowRank && kHalo == kHaloTokens);
constexpr int kProjected = 36;  // B, C, dt

template <typename T, int kC>
struct Geometry {
  static constexpr int kE = 2 * kC;
  static constexpr int kLanes = kC < 24 ? 128 : 64;  // threads of a half
  static constexpr int kThreads = 2 * kLanes;
  static constexpr int kMinBlocks = kC == 3 ? 4 : kC == 6 ? 3 : 2;  // of a multiprocessor
  static constexpr int kRows = kTokens * kLanes;
  static constexpr int kCore = kRows - 8;      // 2 * kHalo, and a multiple of 8: whole sectors in every tile
  static constexpr int kTokenStride = kC | 1;  // of the tokens in shared memory: odd, no bank conflicts
  static constexpr int kStageBytes = kCore * (kE > kProjected ? kE : kProjected) * static_cast<int>(sizeof(T)) + 16;
};

// Transposed, so that the columns of a group lie side by side.
template <int kC>
struct Weights {
  static constexpr int kE = 2 * kC;
  float4 taps[2][kE];               // of a direction and channel; the last is the token itself
  float4 dt[2][kE];                 // row of dt_weight
  float x_proj[2][kE][kProjected];  // [k][n]
  float in_proj[2][kC][kE];         // x, z: [c][n]
  float conv_bias[2][kE], dt_bias[2][kE];
  float norm[kC];
};

template <typename T, int kC>
struct alignas(16) Shared {
  using G = Geometry<T, kC>;
  union {
    alignas(16) unsigned char stage[2][G::kStageBytes];
    float tokens[G::kRows * G::kTokenStride];
  };
  alignas(16) float x[G::kE][G::kRows];
  alignas(16) Weights<kC> weights;
  static_assert(kTaps == kRank && G::kStageBytes % 16 == 0 && G::kCore % 8 == 0 && G::kCore + 2 * kHalo <= G::kRows);
};

struct Parameters {
  const float *norm, *in_proj;                                           // (C), (2 E, C)
  const float *taps[2], *conv_bias[2], *x_proj[2], *dt[2], *dt_bias[2];  // x_proj: reordered, (36, E)
  int dt_rank;
  float eps;
};

template <typename T>
struct Tensors {
  const T* tokens;  // (batch * seq_len, C)
  T *hn, *x, *z;    // (batch * seq_len, C), (.., E) twice; null: not wanted
  T *u[2], *delta[2], *proj[2];
  int64_t seq_len;
  unsigned sequence_tiles, tiles;
};

template <int kC, int kThreads>
__device__ __forceinline__ void load_weights(Weights<kC>& w, const Parameters& p) {
  constexpr int kE = 2 * kC;
  for (int i = threadIdx.x; i < 2 * kE * kC; i += kThreads) {
    const int n = i / kC;
    w.in_proj[n / kE][i % kC][n % kE] = p.in_proj[i];
  }
  for (int i = threadIdx.x; i < kC; i += kThreads) w.norm[i] = p.norm[i];
#pragma unroll
  for (int d = 0; d < 2; ++d) {
    for (int i = threadIdx.x; i < kProjected * kE; i += kThreads) w.x_proj[d][i % kE][i / kE] = p.x_proj[d][i];
    for (int i = threadIdx.x; i < kE * kTaps; i += kThreads) {
      const int channel = i / kTaps, r = i % kRank;
      reinterpret_cast<float*>(w.taps[d])[i] = p.taps[d][i];
      reinterpret_cast<float*>(w.dt[d])[i] = r < p.dt_rank ? p.dt[d][channel * p.dt_rank + r] : 0.0f;
    }
    for (int i = threadIdx.x; i < kE; i += kThreads) {
      w.conv_bias[d][i] = p.conv_bias[d][i];
      w.dt_bias[d][i] = p.dt_bias[d][i];
    }
  }
}

// What a thread knows of the tile it works on.
template <typename T, int kC>
struct Tile {
  using G = Geometry<T, kC>;
  static constexpr int kE = G::kE, kLanes = G::kLanes;
  Shared<T, kC>& shared;
  const Tensors<T>& tensors;
  int half, lane, count;     // tokens of the tile
  int64_t first, first_row;  // its first token: in the sequence, of all rows

  __device__ Tile(Shared<T, kC>& s, const Tensors<T>& t, unsigned tile)
      : shared(s), tensors(t), half(threadIdx.x / kLanes), lane(threadIdx.x % kLanes) {
    first = int64_t{tile % t.sequence_tiles} * G::kCore;
    first_row = tile / t.sequence_tiles * t.seq_len + first;
    count = static_cast<int>(min(int64_t{G::kCore}, t.seq_len - first));
  }
  __device__ bool in_sequence(int row) const {
    const int64_t token = first + row - kHalo;
    return token >= 0 && token < tensors.seq_len;
  }
  __device__ unsigned char* stage() const { return shared.stage[half]; }
  // Writes what the half has staged. again: more will be staged.
  __device__ void flush(T* target, int columns, bool again) const {
    half_barrier<kLanes>(half);
    copy_out<T, kLanes>(stage(), target, count * columns, lane);
    if (again) half_barrier<kLanes>(half);
  }

  // Columns from n on of tokens lane - shift and lane + kLanes - shift.
  template <int kColumns, int kN>
  __device__ void stage_rows(T* rows, int n, const float (&v)[kTokens][kN], int shift) const {
#pragma unroll
    for (int j = 0; j < kTokens; ++j) {
      const int token = lane + j * kLanes - shift;
      if (token >= 0 && token < count) put(rows + token * kColumns + n, v[j]);
    }
  }

  __device__ void load_tokens() const {
    const int64_t at = (first_row - kHalo) * kC;
#pragma unroll
    for (int k = 0; k < (G::kRows * kC) / G::kThreads; ++k) {
      const int i = k * G::kThreads + static_cast<int>(threadIdx.x), row = i / kC;
      shared.tokens[row * G::kTokenStride + i % kC] = in_sequence(row) ? to_float(tensors.tokens[at + i]) : 0.0f;
    }
    static_assert(G::kRows * kC % G::kThreads == 0);
  }

  // hn of rows lane and lane + kLanes; zero outside the sequence.
  __device__ void normalise(float eps, float (&hn)[kTokens][kC]) const {
#pragma unroll
    for (int j = 0; j < kTokens; ++j) {
      const int row = lane + j * kLanes;
      float squares = 0.0f;
#pragma unroll
      for (int c = 0; c < kC; ++c) {
        hn[j][c] = shared.tokens[row * G::kTokenStride + c];
        squares = fmaf(hn[j][c], hn[j][c], squares);
      }
      const float scale = in_sequence(row) ? rsqrtf(squares / kC + eps) : 0.0f;
#pragma unroll
      for (int c = 0; c < kC; ++c) hn[j][c] = rounded<T>(hn[j][c] * scale * shared.weights.norm[c]);
    }
  }

  // By half 0.
  __device__ void write_norm(const float (&hn)[kTokens][kC]) const {
    constexpr int kGroup = group_of(kC);
    T* target = tensors.hn + first_row * kC;
    T* rows = staged(stage(), target);
#pragma unroll
    for (int c = 0; c < kC; c += kGroup) {
      float v[kTokens][kGroup];
#pragma unroll
      for (int i = 0; i < kTokens * kGroup; ++i) v[i / kGroup][i % kGroup] = hn[i / kGroup][c + i % kGroup];
      stage_rows<kC>(rows, c, v, kHalo);
    }
    flush(target, kC, true);
  }

  // Half 0: x to shared memory, and staged where wanted; half 1: z staged.
  __device__ void project_in(const float (&hn)[kTokens][kC], const T* target) const {
    constexpr int kGroup = group_of(kE), kUnroll = kC <= 6 ? kE / kGroup : 1;
    T* rows = staged(stage(), target);
#pragma unroll kUnroll
    for (int n = 0; n < kE; n += kGroup) {
      float v[kTokens][kGroup] = {};
#pragma unroll
      for (int c = 0; c < kC; ++c) {
        float w[kGroup];
        load_group(&shared.weights.in_proj[half][c][n], w);
#pragma unroll
        for (int i = 0; i < kTokens * kGroup; ++i) {
          v[i / kGroup][i % kGroup] = fmaf(hn[i / kGroup][c], w[i % kGroup], v[i / kGroup][i % kGroup]);
        }
      }
      if (half == 0) {
#pragma unroll
        for (int i = 0; i < kTokens * kGroup; ++i) {
          shared.x[n + i % kGroup][lane + i / kGroup * kLanes] = rounded<T>(v[i / kGroup][i % kGroup]);
        }
      }
      if (target != nullptr) stage_rows<kE>(rows, n, v, kHalo);
    }
  }

  // u of tokens lane and lane + kLanes, in the half's direction: also staged.
  __device__ void convolve(float (&u)[kTokens][kE], const T* target) const {
    constexpr int kGroup = group_of(kE);
    T* rows = staged(stage(), target);
    const int step = half == 0 ? -1 : 1;
#pragma unroll
    for (int j = 0; j < kTokens; ++j) {
      const int token = lane + j * kLanes;
      const float* x = shared.x[0] + min(token, G::kCore - 1) + kHalo;  // behind the tile: any row that exists
#pragma unroll
      for (int n = 0; n < kE; n += kGroup) {
        float v[kGroup];
#pragma unroll
        for (int k = 0; k < kGroup; ++k) {
          const float4 w = shared.weights.taps[half][n + k];
          const float* at = x + (n + k) * G::kRows;
          float sum = fmaf(w.w, at[0], shared.weights.conv_bias[half][n + k]);
          sum = fmaf(w.z, at[step], sum);
          sum = fmaf(w.y, at[2 * step], sum);
          sum = fmaf(w.x, at[3 * step], sum);
          v[k] = u[j][n + k] = sum * sigmoid(sum);
        }
        if (token < count) put(rows + token * kE + n, v);
      }
    }
  }

  // Projected rows of both tokens, staged; dt is the last group.
  __device__ void project(const float (&u)[kTokens][kE], const T* target, float (&dt)[kTokens][kRank]) const {
    constexpr int kUnroll = kC <= 3 ? 3 : 1;
    T* rows = staged(stage(), target);
#pragma unroll kUnroll
    for (int n = 0; n < kProjected; n += 4) {
#pragma unroll
      for (int i = 0; i < kTokens * 4; ++i) dt[i / 4][i % 4] = 0.0f;
#pragma unroll
      for (int k = 0; k < kE; ++k) {
        float w[4];
        load_group(&shared.weights.x_proj[half][k][n], w);
#pragma unroll
        for (int i = 0; i < kTokens * 4; ++i) dt[i / 4][i % 4] = fmaf(u[i / 4][k], w[i % 4], dt[i / 4][i % 4]);
      }
      stage_rows<kProjected>(rows, n, dt, 0);
    }
  }

  // delta of both tokens, staged.
  __device__ void step_sizes(const float (&dt)[kTokens][kRank], const T* target) const {
    constexpr int kGroup = group_of(kE), kUnroll = kC <= 6 ? kE / kGroup : 1;
    T* rows = staged(stage(), target);
#pragma unroll kUnroll
    for (int n = 0; n < kE; n += kGroup) {
      float v[kTokens][kGroup];
#pragma unroll
      for (int i = 0; i < kTokens * kGroup; ++i) {
        const int j = i / kGroup, k = i % kGroup;
        const float4 w = shared.weights.dt[half][n + k];
        float sum = fmaf(w.x, dt[j][0], shared.weights.dt_bias[half][n + k]);
        sum = fmaf(w.y, dt[j][1], sum);
        sum = fmaf(w.z, dt[j][2], sum);
        v[j][k] = scan::softplus_as<T>(fmaf(w.w, dt[j][3], sum));
      }
      stage_rows<kE>(rows, n, v, 0);
    }
  }
};

template <typename T, int kC>
__global__ void __launch_bounds__(Geometry<T, kC>::kThreads, Geometry<T, kC>::kMinBlocks)
    block_prepare_kernel(const __grid_constant__ Tensors<T> tensors, const __grid_constant__ Parameters parameters) {
  constexpr int kE = 2 * kC;
  extern __shared__ float4 memory[];
  Shared<T, kC>& shared = *reinterpret_cast<Shared<T, kC>*>(memory);
  load_weights<kC, Geometry<T, kC>::kThreads>(shared.weights, parameters);
  for (unsigned number = blockIdx.x; number < tensors.tiles; number += gridDim.x) {
    const Tile<T, kC> tile(shared, tensors, number);
    const bool reverse = tile.half == 1;
    const int64_t at = tile.first_row * kE;
    __syncthreads();  // the tile before has left the stages and x
    tile.load_tokens();
    __syncthreads();
    {
      float hn[kTokens][kC];
      tile.normalise(parameters.eps, hn);
      __syncthreads();  // the tokens make room for the stages
      if (!reverse && tensors.hn != nullptr) tile.write_norm(hn);
      T* wanted = reverse ? tensors.z : tensors.x;
      if (wanted != nullptr) wanted += at;
      if (!reverse || wanted != nullptr) tile.project_in(hn, wanted);
      __syncthreads();  // x is there, and x or z staged
      if (wanted != nullptr) tile.flush(wanted, kE, true);
    }
    float u[kTokens][kE], dt[kTokens][kRank];
    T* u_out = (reverse ? tensors.u[1] : tensors.u[0]) + at;
    tile.convolve(u, u_out);
    tile.flush(u_out, kE, true);
    T* proj_out = (reverse ? tensors.proj[1] : tensors.proj[0]) + tile.first_row * kProjected;
    tile.project(u, proj_out, dt);
    tile.flush(proj_out, kProjected, true);
    T* delta_out = (reverse ? tensors.delta[1] : tensors.delta[0]) + at;
    tile.step_sizes(dt, delta_out);
    tile.flush(delta_out, kE, false);
  }
}

template <typename Fn>
void dispatch_channels(int64_t channels, Fn&& fn) {
  if (channels == 3) return fn.template operator()<3>();
  if (channels == 6) return fn.template operator()<6>();
  if (channels == 12) return fn.template operator()<12>();
  return fn.template operator()<24>();
}

Parameters parameters_of(const MambaBlockArgs& args, const float* const (&x_proj)[2]) {
  Parameters p{};
  p.norm = static_cast<const float*>(args.norm);
  p.in_proj = static_cast<const float*>(args.in_proj);
  for (int d = 0; d < 2; ++d) {
    p.taps[d] = static_cast<const float*>(args.direction[d].conv_weight);
    p.conv_bias[d] = static_cast<const float*>(args.direction[d].conv_bias);
    p.x_proj[d] = x_proj[d];
    p.dt[d] = static_cast<const float*>(args.direction[d].dt_weight);
    p.dt_bias[d] = static_cast<const float*>(args.direction[d].dt_bias);
  }
  p.dt_rank = static_cast<int>(args.dt_rank);
  p.eps = static_cast<float>(args.norm_eps);
  return p;
}

}  // namespace

void prepare_narrow(const Sequences& s, const MambaBlockArgs& args, const void* tokens, const float* const (&x_proj)[2],
                    const PreparedInputs& inputs, const Projected (&out)[2], Stream stream) {
  dispatch_float(args.dtype, [&]<typename T>() {
    Tensors<T> t{};
    t.tokens = static_cast<const T*>(tokens);
    t.hn = static_cast<T*>(inputs.hn);
    t.x = static_cast<T*>(inputs.x);
    t.z = static_cast<T*>(inputs.z);
    for (int d = 0; d < 2; ++d) {
      t.u[d] = static_cast<T*>(out[d].u);
      t.delta[d] = static_cast<T*>(out[d].delta);
      t.proj[d] = static_cast<T*>(out[d].proj);
    }
    t.seq_len = s.seq_len;
    dispatch_channels(args.channels, [&]<int kC>() {
      using G = Geometry<T, kC>;
      t.sequence_tiles = static_cast<unsigned>(ceil_div(s.seq_len, G::kCore));
      t.tiles = static_cast<unsigned>(s.batch) * t.sequence_tiles;
      const auto kernel = block_prepare_kernel<T, kC>;
      constexpr int kBytes = static_cast<int>(sizeof(Shared<T, kC>));
      PM_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes));
      kernel<<<static_cast<unsigned>(std::min<int64_t>(t.tiles, kMaxGrid)), G::kThreads, kBytes, raw(stream)>>>(
          t, parameters_of(args, x_proj));
      PM_CHECK_LAUNCH("block_prepare");
    });
  });
}

}  // namespace pm::cuda::block
