// The gradient scan of the fused Mamba block: one direction per launch, the forward one first.
//
// maths   : engine/ops/scan/selective_scan.h, with g = dy * share * silu(z) and y = (y_forward + y_reverse) * share * silu(z)
// passes  : a block takes one chunk of at most 64 steps of 96 channels (or several chunks, block.cuh) from the state that enters
//           it in front and the adjoint that enters it behind (block_summary_grad.cu, block_carry.cu).
//           A. forward: the state before every tile of 4 steps, kept in shared memory. Only u, delta and B are needed
//           B. tiles from last to first: the 4 steps again with decays and states in registers, then back through them:
//              y and h, and with them du, ddelta, dB, dC, dA
//           The forward direction stores y; the reverse one adds its own, gates, and writes dz as well.
// layout  : block_grad.cuh. A lane owns two neighbouring channels of one step of every tile (three where 16 does not divide the
//           channels of a chunk): it loads their values ahead, shares them as (delta, delta * u, u, g) in its warp's shared
//           memory, ends with their sums over states and writes their results. Warps wait for each other only at the end, when dB,
//           dC and the parameters are added across them. Until then a warp keeps dB and dC of a tile where the tile's states
//           were.
//
//             channels of a lane             2     3     3     3
//             d_inner               48, 96, ..    6    12    24, others
//             warps, registers               6, 168      4, 255
//             shared memory, KiB
//               states before tiles         96    96    96    96
//               values                       6     6     6     6
//               B, C of each warp's chunks   3.1   8.3   4.1   2.1
//               chunks                       0.7   0.7   0.7   0.7
// launch  : (chunks / subs) * groups blocks of 6 or 4 warps, two blocks per multiprocessor (113 KiB of shared memory each)
// traffic : reads u, delta, B, C twice, z, dy; writes du, ddelta, y (read and written again by the reverse direction), dz;
//           dB, dC once per 96 channels; 18 floats per channel and block for the parameters.
// floor   : 2 exponentials per state and step: 256 cycles of a scheduler for 32 channels of a step; 272 instructions of the
//           recurrence and its gradient (17 per state). Counted in SASS for 32 channels of a step, both passes: loads, gates,
//           sums over lanes and stores included, without what a chunk costs once:
//
//             channels of a lane             2     3     3     3      3, single values
//             d_inner               48, 96, ..    6    12    24      others
//             bfloat16, forward            426   468   435   419    422
//                       reverse            445   482   458   439    446
//             float32,  forward            457   481   451            433
//                       reverse            478   498   466            447
// measured: H200, bf16, 128 sequences of 785 tokens, d_inner 384: 982 and 997 us, 60 % of the issue slots, exponentials 31 %.
// numerics: float32; sums of dB and dC over lanes by tensor cores: terms of 11 bits where they end in bfloat16, of 22 in
//           float32 (LaneSums). deterministic: no atomics, sums over lanes and warps in fixed order.
#include "cuda/scan/block_grad_passes.cuh"

namespace pm::cuda::block {
namespace {

constexpr size_t kBlockBytes = 113 * 1024;  // of shared memory, at most: so two blocks fit on a multiprocessor

// dA, dD and dbias of the block: its chunks in order, one row of parameter partials. `shared` has room for (96, 18) floats.
template <typename Walk>
__device__ __forceinline__ void store_parameters(const Sequences& s, float4* shared, const Walk& walk,
                                                 float* parameters) {
  float* table = reinterpret_cast<float*>(shared);
  __syncthreads();
#pragma unroll
  for (int c = 0; c < Walk::kChannels; ++c) {
    float* row = table + (walk.first_channel() + c) * kParameters;
#pragma unroll
    for (int n = 0; n < kLaneStates; ++n) row[walk.state_lane * kLaneStates + n] = walk.lane.dA[c][n];
    const float dD = add_state_lanes(walk.parameters[c].x), dbias = add_state_lanes(walk.parameters[c].y);
    if (walk.state_lane == 0) row[kStates] = dD, row[kStates + 1] = dbias;
  }
  __syncthreads();
  const int first_channel = blockIdx.x % s.groups * s.width, channels = min(s.width, s.d_inner - first_channel);
  float* row = parameters + (blockIdx.x / s.groups * 2 * int64_t{s.d_inner} + first_channel) * kParameters;
  for (int i = threadIdx.x; i < channels * kParameters; i += static_cast<int>(blockDim.x)) {
    float sum = 0.0f;
#pragma unroll 1
    for (int sub = 0; sub < s.subs; ++sub) sum += table[sub * s.width * kParameters + i];
    row[i] = sum;
  }
}

template <typename T, typename Shape, bool kReverse, bool kWords>
__global__ void __launch_bounds__(Shape::kThreads, 2)
    block_grad_kernel(const __grid_constant__ Sequences s, const __grid_constant__ GradInputs<T> in,
                      const __grid_constant__ GradOutputs<T> out) {
  extern __shared__ float4 shared[];
  auto& memory = *reinterpret_cast<GradMemory<T, Shape>*>(shared);
  memory.fill(s, in, out);
  GradWalk<T, Shape, kReverse, kWords> walk(s, in, out, memory);
  walk.run();
  store_parameters(s, shared, walk, out.parameters);
}

template <typename T, bool kReverse>
void launch(const Sequences& s, const GradInputs<T>& in, const GradOutputs<T>& out, Stream stream) {
  const int64_t blocks = ceil_div(s.pairs(), s.subs) * s.groups;
  const auto start = [&]<typename Shape, bool kWords>() {
    const auto kernel = block_grad_kernel<T, Shape, kReverse, kWords>;
    constexpr size_t kBytes = sizeof(GradMemory<T, Shape>);
    static_assert(kBytes <= kBlockBytes);
    PM_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(kBytes)));
    kernel<<<static_cast<unsigned>(blocks), Shape::kThreads, kBytes, raw(stream)>>>(s, in, out);
    PM_CHECK_LAUNCH("block_grad");
  };
  constexpr bool kBf16 = std::is_same_v<T, __nv_bfloat16>;
  const bool even_groups = s.d_inner % s.width == 0;
  if (even_groups && s.width % (2 * kChannelLanes) == 0) return start.template operator()<GradShape<2, 8>, kBf16>();
  if (s.width == 6) return start.template operator()<GradShape<3, 2>, kBf16>();
  if (s.width == 12) return start.template operator()<GradShape<3, 4>, kBf16>();
  if (s.d_inner % 6 == 0 && s.width % 6 == 0) return start.template operator()<GradShape<3, 8>, kBf16>();
  start.template operator()<GradShape<3, 8>, false>();
}

struct ParameterGrads {
  const float* A_log;
  float *dA_log, *dD, *dbias;
};

// Gradients of A_log, D_skip and dt_bias of direction blockIdx.y from the summed parameters (2, d_inner, 18); dA_log = dA * A.
__global__ void __launch_bounds__(kBlock)
    block_parameters_kernel(const float* __restrict__ sums, ParameterGrads forward, ParameterGrads reverse,
                            int64_t d_inner) {
  const int64_t i = int64_t{blockIdx.x} * kBlock + threadIdx.x;
  if (i >= d_inner * kParameters) return;
  const ParameterGrads grads = blockIdx.y == 0 ? forward : reverse;
  const int64_t channel = i / kParameters, n = i % kParameters;
  const float sum = sums[blockIdx.y * d_inner * kParameters + i];
  if (n < kStates) grads.dA_log[channel * kStates + n] = -expf(grads.A_log[channel * kStates + n]) * sum;
  if (n == kStates) grads.dD[channel] = sum;
  if (n > kStates) grads.dbias[channel] = sum;
}

}  // namespace

static_assert(kParameters == kScanParameters);

int64_t parameter_rows(const Sequences& s) { return ceil_div(s.pairs(), s.subs); }
int64_t parameter_columns(const MambaBlockArgs& args) { return 2 * args.d_inner * kParameters; }

void scan_grad(const Sequences& s, const MambaBlockArgs& args, const Projected (&rows)[2], const Chunks& chunks,
               int64_t first_pair, const void* z, const void* dy, const ScanGrads& grads, Stream stream) {
  dispatch_float(args.dtype, [&]<typename T>() {
    for (int p = 0; p < 2; ++p) {
      const int64_t offset = (p * chunks.pairs + first_pair) * args.d_inner * kStates;
      const bool carried = chunks.states != nullptr;
      const GradInputs<T> in{static_cast<const T*>(rows[p].u),
                             static_cast<const T*>(rows[p].delta),
                             static_cast<const T*>(rows[p].proj),
                             static_cast<const T*>(z),
                             static_cast<const T*>(dy),
                             static_cast<const float*>(args.direction[p].A_log),
                             static_cast<const float*>(args.direction[p].D_skip),
                             carried ? chunks.states + offset : nullptr,
                             carried ? chunks.adjoints + offset : nullptr,
                             args.divide_out ? 0.5f : 1.0f};
      const GradOutputs<T> out{static_cast<T*>(grads.y),
                               static_cast<T*>(grads.dz),
                               static_cast<T*>(grads.du[p]),
                               static_cast<T*>(grads.ddelta[p]),
                               grads.pairs[p],
                               grads.parameters + p * args.d_inner * kParameters};
      p == 0 ? launch<T, false>(s, in, out, stream) : launch<T, true>(s, in, out, stream);
    }
  });
}

void sum_parameters(const MambaBlockArgs& args, const float* partials, int64_t rows,
                    const MambaDirectionGradArgs (&out)[2], Stream stream) {
  const int64_t columns = parameter_columns(args);
  const Scratch<float> sums(stream, columns);
  column_sum(partials, rows, columns, sums.get(), stream);
  const auto grads = [&](int p) {
    return ParameterGrads{static_cast<const float*>(args.direction[p].A_log), static_cast<float*>(out[p].A_log),
                          static_cast<float*>(out[p].D_skip), static_cast<float*>(out[p].dt_bias)};
  };
  const dim3 grid(static_cast<unsigned>(ceil_div(columns / 2, kBlock)), 2);
  block_parameters_kernel<<<grid, kBlock, 0, raw(stream)>>>(sums.get(), grads(0), grads(1), args.d_inner);
  PM_CHECK_LAUNCH("block_parameters");
}

}  // namespace pm::cuda::block
