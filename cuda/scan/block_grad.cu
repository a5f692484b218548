// The gradient scan of the fused Mamba block: one direction per launch, the forward one first.
//
// maths   : engine/ops/scan/selective_scan.h, with g = dy * share * silu(z) and y = (y_forward + y_reverse) * share * silu(z)
// passes  : a block takes one chunk of at most 64 steps of 96 channels (or several chunks, block.cuh) from the state that enters
//           it in front and the adjoint that enters it behind (block_summary_grad.cu, block_carry.cu).
//           A. forward: y, and the state before every tile of 4 steps, kept in shared memory
//           B. tiles from last to first: the 4 steps again with decays and states in registers, then back through them:
//              h, and with it du, ddelta, dB, dC, dA
//           The forward direction stores y; the reverse one adds its own, gates, and writes dz as well.
// layout  : block_grad.cuh. A warp loads the values of its 24 channels one tile ahead, one lane per value, shares them as
//           (delta, u, g) in its own shared memory, and the same lane writes the results: warps do not wait for each other,
//           but for one barrier a tile where several share a chunk and dB, dC are added across them.
//
//             shared memory, KiB        d_inner 6   12    24 and more
//             states before tiles 1-15      90      90    90
//             values and results             6       6     6
//             B, C of each warp's chunks     8.3     4.1   2.1
//             dB, dC of lanes and warps      0       0    12
// launch  : (chunks / subs) * groups blocks of 4 warps, two blocks per multiprocessor (shared memory, 255 registers)
// traffic : reads u, delta, B, C twice, z, dy; writes du, ddelta, y (read and written again by the reverse direction), dz;
//           dB, dC once per 96 channels; 18 floats per channel and block for the parameters.
// floor   : 2 exponentials per state and step: 256 cycles of a scheduler for 32 channels of a step. Measured (ncu, H100, 128
//           sequences of 784 tokens, d_inner 384, bf16): about 640 instructions and 700 cycles: bound by instructions, of
//           which 44 % are the recurrence and its gradient, 31 % loads, stores and gates of values, the rest sums over lanes.
// numerics: float32 throughout. deterministic: no atomics, sums over lanes and warps in fixed order.
#include "cuda/scan/block_grad_passes.cuh"

namespace pm::cuda::block {
namespace {

// dA, dD and dbias of the block: its chunks in order, one row of parameter partials. `shared` has room for (96, 16) floats and
// (kTile, 96) pairs.
__device__ __forceinline__ void store_parameters(const Sequences& s, float4* shared, const GradLane& lane,
                                                 const Element (&elements)[kElements], const float2 (&sums)[kElements],
                                                 float* parameters) {
  float* dA = reinterpret_cast<float*>(shared);
  float2* scalars = reinterpret_cast<float2*>(dA + kDirectionThreads * kStates);
  __syncthreads();
#pragma unroll
  for (int c = 0; c < kLaneChannels; ++c) {
#pragma unroll
    for (int n = 0; n < kLaneStates; ++n) {
      dA[(lane.first_channel + c) * kStates + lane.state_lane * kLaneStates + n] = lane.dA[c][n];
    }
  }
#pragma unroll
  for (int j = 0; j < kElements; ++j) {
    const int slot = elements[j].slot, v = threadIdx.x / kWarp * kWarpChannels + slot % kWarpChannels;
    scalars[slot / kWarpChannels * kDirectionThreads + v] = sums[j];
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

template <typename T, int kSubLanes, bool kSecond>
__global__ void __launch_bounds__(kGradThreads, 2)
    block_grad_kernel(const __grid_constant__ Sequences s, const __grid_constant__ GradInputs<T> in,
                      const __grid_constant__ GradOutputs<T> out) {
  extern __shared__ float4 shared[];
  auto& memory = *reinterpret_cast<GradMemory<kSubLanes>*>(shared);
  const int group = blockIdx.x % s.groups, warp_lane = threadIdx.x % kWarp;
  memory.table.fill(s, blockIdx.x / s.groups * int64_t{s.subs});
  GradWalk<T, kSubLanes> walk{
      s,
      in,
      out,
      memory,
      memory.table.row[0] * s.d_inner,
      group * s.batch * s.seq_len,
      static_cast<int>(threadIdx.x) / kWarp,
      warp_lane,
      (in.reverse ? -kTile : kTile) * s.d_inner,
      {Element(s, memory, group, warp_lane, in.reverse), Element(s, memory, group, warp_lane + kWarp, in.reverse),
       Element(s, memory, group, warp_lane + 2 * kWarp, in.reverse)},
      {}};
  walk.lane.state_lane = threadIdx.x % kLaneStates;
  walk.lane.first_channel = static_cast<int>(threadIdx.x) / kLaneStates * kLaneChannels;
  walk.lane.sub = min(walk.lane.first_channel / s.width, s.subs - 1);
  walk.enter();
  walk.template forward_pass<kSecond>();
  float2 sums[kElements] = {};
  walk.backward_pass(sums);
  store_parameters(s, shared, walk.lane, walk.elements, sums, out.parameters);
}

template <typename T, bool kSecond>
void launch(const Sequences& s, const GradInputs<T>& in, const GradOutputs<T>& out, Stream stream) {
  const int64_t blocks = ceil_div(s.pairs(), s.subs) * s.groups;
  const auto start = [&](auto kernel, size_t bytes) {
    PM_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)));
    kernel<<<static_cast<unsigned>(blocks), kGradThreads, bytes, raw(stream)>>>(s, in, out);
    PM_CHECK_LAUNCH("block_grad");
  };
  if (s.width == 2 * kLaneChannels) return start(block_grad_kernel<T, 2, kSecond>, sizeof(GradMemory<2>));
  if (s.width == 4 * kLaneChannels) return start(block_grad_kernel<T, 4, kSecond>, sizeof(GradMemory<4>));
  start(block_grad_kernel<T, 8, kSecond>, sizeof(GradMemory<8>));
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
                             args.divide_out ? 0.5f : 1.0f,
                             p == 1};
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
