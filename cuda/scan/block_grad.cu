// The gradient scan of the fused Mamba block: one direction per launch, the forward one first.
//
// maths   : engine/ops/scan/selective_scan.h, with g = dy * share * silu(z) and y = (y_forward + y_reverse) * share * silu(z)
// passes  : a block takes one chunk of at most 64 steps of 96 channels (or several chunks, block.cuh) from the state that enters
//           it in front and the adjoint that enters it behind (block_summary_grad.cu, block_carry.cu).
//           A. forward: y, and the state before every tile of 4 steps, kept in shared memory
//           B. tiles from last to first: the 4 steps again with decays and states in registers, then back through them:
//              h, and with it du, ddelta, dB, dC, dA
//           The forward direction stores y; the reverse one adds its own, gates, and writes dz as well.
// layout  : block_grad.cuh. A lane owns three neighbouring channels of one step of every tile: it loads their values one tile
//           ahead, shares them as (delta, delta * u, u, g) in its warp's shared memory, ends with their sums over states and
//           writes their results. Warps do not wait for each other, but for one barrier a tile where several share a chunk and
//           dB, dC are added across them.
//
//             shared memory, KiB        d_inner 6   12    24 and more
//             states before tiles 1-15      90      90    90
//             values                         6.5     6.5   6.5
//             B, C of each warp's chunks     8.3     4.1   2.1
//             dB, dC of lanes and warps      0       0    12
// launch  : (chunks / subs) * groups blocks of 4 warps, two blocks per multiprocessor (shared memory, 255 registers)
// traffic : reads u, delta, B, C twice, z, dy; writes du, ddelta, y (read and written again by the reverse direction), dz;
//           dB, dC once per 96 channels; 18 floats per channel and block for the parameters.
// floor   : 2 exponentials per state and step: 256 cycles of a scheduler for 32 channels of a step; 272 instructions of the
//           recurrence and its gradient (17 per state). Counted in SASS (bf16, d_inner 24 and more), loads, gates, sums over
//           lanes and stores included: 462 (forward) and 494 (reverse direction).
// numerics: float32 throughout. deterministic: no atomics, sums over lanes and warps in fixed order.
#include "cuda/scan/block_grad_passes.cuh"

namespace pm::cuda::block {
namespace {

// dA, dD and dbias of the block: its chunks in order, one row of parameter partials. `shared` has room for (96, 16) floats and
// (kTile, 96) pairs.
__device__ __forceinline__ void store_parameters(const Sequences& s, float4* shared, const GradLane& lane,
                                                 const float2 (&sums)[kLaneChannels], float* parameters) {
  float* dA = reinterpret_cast<float*>(shared);
  float2* scalars = reinterpret_cast<float2*>(dA + kDirectionThreads * kStates);
  __syncthreads();
#pragma unroll
  for (int c = 0; c < kLaneChannels; ++c) {
#pragma unroll
    for (int n = 0; n < kLaneStates; ++n) {
      dA[(lane.first_channel + c) * kStates + lane.state_lane * kLaneStates + n] = lane.dA[c][n];
    }
    scalars[lane.state_lane * kDirectionThreads + lane.first_channel + c] = sums[c];
  }
  __syncthreads();
  const int first_channel = blockIdx.x % s.groups * s.width, channels = min(s.width, s.d_inner - first_channel);
  float* row = parameters + (blockIdx.x / s.groups * 2 * int64_t{s.d_inner} + first_channel) * kParameters;
  for (int i = threadIdx.x; i < channels * kParameters; i += kGradThreads) {
    const int channel = i / kParameters, n = i % kParameters;
    float sum = 0.0f;
    for (int v = channel; v < s.subs * s.width; v += s.width) {
      if (n < kStates) {
        sum += dA[v * kStates + n];
        continue;
      }
      for (int t = 0; t < kTile; ++t) {
        const float2 pair = scalars[t * kDirectionThreads + v];
        sum += n == kStates ? pair.x : pair.y;
      }
    }
    row[i] = sum;
  }
}

template <typename T, int kSubLanes, bool kReverse, bool kWords>
__global__ void __launch_bounds__(kGradThreads, 2)
    block_grad_kernel(const __grid_constant__ Sequences s, const __grid_constant__ GradInputs<T> in,
                      const __grid_constant__ GradOutputs<T> out) {
  extern __shared__ float4 shared[];
  auto& memory = *reinterpret_cast<GradMemory<T, kSubLanes>*>(shared);
  memory.fill(s, in, out);
  GradLane lane;
  const int thread = static_cast<int>(threadIdx.x), warp = thread / kWarp;
  lane.state_lane = thread % kLaneStates;
  lane.first_channel = thread / kLaneStates * kLaneChannels;
  lane.sub = min(lane.first_channel / s.width, s.subs - 1);
  const Place place(s, memory.table, lane, kReverse, kWords);
  const int first_sub = min(warp * kWarpChannels / s.width, s.subs - 1);
  GradWalk<T, kSubLanes, kReverse, kWords> walk{s, in, out, memory, warp, thread % kWarp, first_sub, lane, place, {}};
  walk.enter();
  walk.forward_pass();
  float2 sums[kLaneChannels] = {};
  walk.backward_pass(sums);
  store_parameters(s, shared, walk.lane, sums, out.parameters);
}

template <typename T, bool kReverse>
void launch(const Sequences& s, const GradInputs<T>& in, const GradOutputs<T>& out, Stream stream) {
  const int64_t blocks = ceil_div(s.pairs(), s.subs) * s.groups;
  const auto start = [&]<int kSubLanes, bool kWords>() {
    const auto kernel = block_grad_kernel<T, kSubLanes, kReverse, kWords>;
    constexpr size_t kBytes = sizeof(GradMemory<T, kSubLanes>);
    PM_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(kBytes)));
    kernel<<<static_cast<unsigned>(blocks), kGradThreads, kBytes, raw(stream)>>>(s, in, out);
    PM_CHECK_LAUNCH("block_grad");
  };
  constexpr bool kBf16 = std::is_same_v<T, __nv_bfloat16>;
  if (s.width == 2 * kLaneChannels) return start.template operator()<2, kBf16>();
  if (s.width == 4 * kLaneChannels) return start.template operator()<4, kBf16>();
  constexpr int kLanePair = 2 * kLaneChannels;
  if (s.d_inner % kLanePair == 0 && s.width % kLanePair == 0) return start.template operator()<8, kBf16>();
  start.template operator()<8, false>();
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
