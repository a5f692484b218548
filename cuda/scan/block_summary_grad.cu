// Chunk summaries for the gradient of the fused Mamba block: states and adjoints of every chunk from zero, in one walk.
//
// maths   : h_i[n] = C_i[n] * g_i + exp(delta_{i+1} * A[n]) * h_{i+1}[n],  g = dy * share * silu(z)
//           What a chunk hands to the one before it, from zero, is
//             sum over its steps i of (decays of steps 0 to i) * C_i * g_i,
//           which a walk in forward order sums with a running product: one exponential serves state and adjoint.
// block, launch, shared: as block_scan.cu. traffic: reads u, delta, B, C of both directions, z and dy.
// measured: H200, bf16, 128 sequences of 785 tokens, d_inner 384: 703 us, 61 % of the issue slots (166 instructions for 32
//           channels of a step, counted in SASS; 168 registers, 12 warps a multiprocessor), exponentials 43 %.
// numerics: float32. deterministic: no atomics.
#include "cuda/scan/block.cuh"

namespace pm::cuda::block {
namespace {

template <typename T>
struct SummaryInputs {
  const T *u[2], *delta[2], *proj[2], *z, *dy;
  const float* A_log[2];
  float share;
};

struct Summary {
  float state[kStates] = {}, adjoint[kStates] = {}, product[kStates], delta_sum = 0.0f;

  __device__ void advance(const float (&a2)[kStates], float delta, float delta_u, float g, PairRow row) {
    delta_sum += delta;
#pragma unroll
    for (int q = 0; q < 4; ++q) {
      const float4 b = row[q], c = row[4 + q];
      const float B[4] = {b.x, b.y, b.z, b.w}, C[4] = {c.x, c.y, c.z, c.w};
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const int n = 4 * q + k;
        const float decay = exp2_approx(delta * a2[n]);
        state[n] = fmaf(decay, state[n], delta_u * B[k]);
        product[n] *= decay;
        adjoint[n] = fmaf(product[n], C[k] * g, adjoint[n]);
      }
    }
  }
};

template <typename T, int kPieces>
__global__ void __launch_bounds__(2 * kDirectionThreads, 2)
    block_summary_grad_kernel(const __grid_constant__ Sequences s, const __grid_constant__ SummaryInputs<T> in,
                              Chunks chunks, int64_t first_chunk) {
  extern __shared__ float4 shared[];
  __shared__ PairTable table;
  const int direction = threadIdx.x / kDirectionThreads, lane = threadIdx.x % kDirectionThreads;
  const int64_t first_pair = blockIdx.x / s.groups * int64_t{s.subs};
  table.fill(s, first_pair);
  const bool reverse = direction == 1;
  const Walk walk(s, table, blockIdx.x % s.groups, lane, reverse);
  const T* u = (reverse ? in.u[1] : in.u[0]) + walk.base;
  const T* delta = (reverse ? in.delta[1] : in.delta[0]) + walk.base;
  const T *z = in.z + walk.base, *dy = in.dy + walk.base;
  float* memory = reinterpret_cast<float*>(shared) + direction * stage_floats(s.subs, 32);
  PairStage<T, 32, kPieces> stage(s, table, reverse ? in.proj[1] : in.proj[0], memory, lane, reverse);
  float a2[kStates];
  load_decay(reverse ? in.A_log[1] : in.A_log[0], walk, a2);
  Summary sum;
#pragma unroll
  for (int n = 0; n < kStates; ++n) sum.product[n] = 1.0f;

  const int tiles = s.chunk_len / kTile;
  T u_next[kTile], delta_next[kTile], gate_next[kTile], dy_next[kTile];
  const auto load = [&](int tile) {
    walk.load(u, tile * kTile, u_next);
    walk.load(delta, tile * kTile, delta_next);
    walk.load(z, tile * kTile, gate_next);
    walk.load(dy, tile * kTile, dy_next);
  };
  stage.begin(0);
  load(0);
  for (int tile = 0; tile < tiles; ++tile) {
    float u_now[kTile], delta_now[kTile], g[kTile];
    stage.finish(tile & 1);
    stage.synchronise(direction);
    if (tile + 1 < tiles) stage.begin(~tile & 1);
#pragma unroll
    for (int k = 0; k < kTile; ++k) {
      const float gate = to_float(gate_next[k]);
      u_now[k] = to_float(u_next[k]);
      delta_now[k] = to_float(delta_next[k]);
      g[k] = to_float(dy_next[k]) * in.share * gate * sigmoid(gate);
    }
    load(tile + 1);  // behind the chunk: zeros
#pragma unroll
    for (int k = 0; k < kTile; ++k) {
      sum.advance(a2, delta_now[k], delta_now[k] * u_now[k], g[k], stage.row(tile & 1, walk.sub, k));
    }
  }
  if (!walk.live()) return;
  const int64_t channel = (direction * chunks.pairs + first_chunk + first_pair + walk.sub) * s.d_inner + walk.channel;
  float4* states = reinterpret_cast<float4*>(chunks.states + channel * kStates);
  float4* adjoints = reinterpret_cast<float4*>(chunks.adjoints + channel * kStates);
#pragma unroll
  for (int n = 0; n < kStates; n += 4) {
    states[n / 4] = make_float4(sum.state[n], sum.state[n + 1], sum.state[n + 2], sum.state[n + 3]);
    adjoints[n / 4] = make_float4(sum.adjoint[n], sum.adjoint[n + 1], sum.adjoint[n + 2], sum.adjoint[n + 3]);
  }
  chunks.delta_sums[channel] = sum.delta_sum;
}

}  // namespace

void summarise_grad(const Sequences& s, const MambaBlockArgs& args, const Projected (&rows)[2], const Chunks& chunks,
                    int64_t first_pair, const void* z, const void* dy, Stream stream) {
  dispatch_float(args.dtype, [&]<typename T>() {
    SummaryInputs<T> in{};
    for (int p = 0; p < 2; ++p) {
      in.u[p] = static_cast<const T*>(rows[p].u);
      in.delta[p] = static_cast<const T*>(rows[p].delta);
      in.proj[p] = static_cast<const T*>(rows[p].proj);
      in.A_log[p] = static_cast<const float*>(args.direction[p].A_log);
    }
    in.z = static_cast<const T*>(z);
    in.dy = static_cast<const T*>(dy);
    in.share = args.divide_out ? 0.5f : 1.0f;
    const int64_t blocks = ceil_div(s.pairs(), s.subs) * s.groups;
    const size_t bytes = static_cast<size_t>(2 * stage_floats(s.subs, 32)) * sizeof(float);
    dispatch_pieces(s.subs, 32, [&]<int kPieces>() {
      const auto kernel = block_summary_grad_kernel<T, kPieces>;
      PM_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)));
      kernel<<<static_cast<unsigned>(blocks), 2 * kDirectionThreads, bytes, raw(stream)>>>(s, in, chunks, first_pair);
      PM_CHECK_LAUNCH("block_summary_grad");
    });
  });
}

}  // namespace pm::cuda::block
