// Scans of the fused Mamba block, both directions in one launch, 16 states.
//
// maths   : s_i[n] = exp(delta_i * A[n]) * s_{i-1}[n] + delta_i * u_i * B_i[n];   y_i = sum_n C_i[n] * s_i[n] + D * u_i
//           y = (y_forward + y_reverse) * share * silu(z)
// passes  : the recurrence is associative in (decay, state), so chunks are walked at once:
//           summary  each chunk from a zero state: its last state, and its sum of delta (its decay is exp(A * sum))
//           carry    over the chunks (block_carry.cu): what enters each
//           finish   each chunk again from there, with the output. One chunk per sequence: finish alone. Where a block holds
//                    one chunk, block_finish.cu does it.
// block   : 96 threads forward, 96 in reverse, over the same chunks and channels (block.cuh); a thread has the 16 states of
//           its channel in registers. The directions meet in the middle of the chunk:
//
//             tokens of the chunk   0 . . . . . . . half . . . . . . . end
//             forward               ---- stores y ---->|- adds, gates ->
//             reverse               <- adds, gates ----|<-- stores y ---
//
//           Whoever comes first to a token leaves its y there, whoever comes second adds its own, gates and writes the
//           result: no second buffer, one gate for both.
// launch  : (chunks / subs) * groups blocks, three per multiprocessor (96 registers). A summary that stages several pieces a
//           thread (d_inner 6, 12) has code for each direction, whose tensors and strides take no registers then: 1,632 to 1,422 us
//           at 6 channels; at 96 one code is faster (998, 1,056 us).
// shared  : B and C of 4 steps, two buffers per direction: 2 to 34 KiB
// traffic : summary reads u, delta, B of both directions; finish reads u, delta, B, C of both and z, writes y, and half of
//           y once more each way (L2).
// floor   : an exponential per state, token and direction and pass, 16 per clock and multiprocessor: 128 cycles of a scheduler
//           for 32 channels of a token. Measured (H200, bf16, one slide, 983 us of exponentials in a launch at 6 channels, 917 at
//           96): summary 1,422 us at 6 channels, 998 at 96; finish 2,397 at 6, 1,684 at 12, 1,576 at 24, 1,463 at 48.
// numerics: float32 state and sums; ex2.approx with A * log2(e), 2 ulp. deterministic: no atomics.
#include "cuda/scan/block.cuh"

namespace pm::cuda::block {
namespace {

template <typename T>
struct ScanInputs {
  const T *u[2], *delta[2], *proj[2], *z;
  const float *A_log[2], *D_skip[2];
  float share;
};

// One step of all states; returns <C, s> when the row holds C behind B.
template <bool kOutput>
__device__ __forceinline__ float advance(float (&state)[kStates], const float (&a2)[kStates], float delta,
                                         float delta_u, PairRow row) {
  float y[4] = {};
#pragma unroll
  for (int q = 0; q < 4; ++q) {
    const float4 b = row[q], c = kOutput ? row[4 + q] : b;
    const float B[4] = {b.x, b.y, b.z, b.w}, C[4] = {c.x, c.y, c.z, c.w};
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      float& s = state[4 * q + k];
      s = fmaf(exp2_approx(delta * a2[4 * q + k]), s, delta_u * B[k]);
      if constexpr (kOutput) y[k] = fmaf(C[k], s, y[k]);
    }
  }
  return (y[0] + y[1]) + (y[2] + y[3]);
}

__device__ __forceinline__ void load_state(const float* source, float (&state)[kStates]) {
#pragma unroll
  for (int q = 0; q < 4; ++q) {
    const float4 v = reinterpret_cast<const float4*>(source)[q];
    state[4 * q] = v.x, state[4 * q + 1] = v.y, state[4 * q + 2] = v.z, state[4 * q + 3] = v.w;
  }
}
__device__ __forceinline__ void store_state(float* target, const float (&state)[kStates]) {
#pragma unroll
  for (int q = 0; q < 4; ++q) {
    reinterpret_cast<float4*>(target)[q] =
        make_float4(state[4 * q], state[4 * q + 1], state[4 * q + 2], state[4 * q + 3]);
  }
}

// The second half of a finish: adds the other direction's y, which lies where the result goes, and gates.
template <typename T>
__device__ __forceinline__ void add_and_gate(const Walk& walk, int i, const float (&v)[kTile], const T* z, float share,
                                             T* y) {
  T gates[kTile], others[kTile];
  walk.load(z, i, gates);
  walk.load(y, i, others);
#pragma unroll
  for (int k = 0; k < kTile; ++k) {
    const float gate = to_float(gates[k]), value = (v[k] + to_float(others[k])) * share * gate * sigmoid(gate);
    if (walk.has(i + k)) y[walk.at + (i + k) * walk.step] = from_float<T>(value);
  }
}

// What a launch walks, and where results go.
template <typename T>
struct ScanJob {
  Sequences s;
  ScanInputs<T> in;
  Chunks chunks;
  int64_t first_chunk;
  T* y;
};

// One direction of a block.
template <typename T, bool kFinish, int kPieces>
__device__ __forceinline__ void walk_direction(const ScanJob<T>& job, const PairTable& table, float* memory,
                                               int direction, int lane) {
  constexpr int kColumns = kFinish ? 32 : 16;
  const Sequences& s = job.s;
  const ScanInputs<T>& in = job.in;
  const Chunks& chunks = job.chunks;
  const int64_t first_pair = blockIdx.x / s.groups * int64_t{s.subs};
  const bool reverse = direction == 1;
  const Walk walk(s, table, blockIdx.x % s.groups, lane, reverse);
  const T* u = (reverse ? in.u[1] : in.u[0]) + walk.base;
  const T* delta = (reverse ? in.delta[1] : in.delta[0]) + walk.base;
  const T* z = kFinish ? in.z + walk.base : nullptr;
  T* out = kFinish ? job.y + walk.base : nullptr;
  PairStage<T, kColumns, kPieces> stage(s, table, reverse ? in.proj[1] : in.proj[0], memory, lane, reverse);
  float a2[kStates], state[kStates] = {}, delta_sum = 0.0f;
  load_decay(reverse ? in.A_log[1] : in.A_log[0], walk, a2);
  const int64_t summary =
      (direction * chunks.pairs + job.first_chunk + first_pair + walk.sub) * s.d_inner + walk.channel;
  if (kFinish && walk.live() && chunks.states != nullptr) load_state(chunks.states + summary * kStates, state);
  const float D = kFinish ? (reverse ? in.D_skip[1] : in.D_skip[0])[walk.channel] : 0.0f;

  const int tiles = s.chunk_len / kTile, half = tiles / 2;
  T u_next[kTile], delta_next[kTile];
  stage.begin(0);
  walk.load(u, 0, u_next);
  walk.load(delta, 0, delta_next);
  for (int tile = 0; tile < tiles; ++tile) {
    float u_now[kTile], delta_now[kTile], v[kTile];
    stage.finish(tile & 1);
    stage.synchronise(direction);
    if (tile + 1 < tiles) stage.begin(~tile & 1);
#pragma unroll
    for (int k = 0; k < kTile; ++k) u_now[k] = to_float(u_next[k]), delta_now[k] = to_float(delta_next[k]);
    walk.load(u, (tile + 1) * kTile, u_next);  // behind the chunk: zeros
    walk.load(delta, (tile + 1) * kTile, delta_next);
#pragma unroll
    for (int k = 0; k < kTile; ++k) {
      const PairRow row = stage.row(tile & 1, walk.sub, k);
      v[k] = fmaf(D, u_now[k], advance<kFinish>(state, a2, delta_now[k], delta_now[k] * u_now[k], row));
      if constexpr (!kFinish) delta_sum += delta_now[k];
    }
    if constexpr (kFinish) {
      if (tile == half) __syncthreads();  // the other direction has left its y in this half
      if (tile >= half) {
        add_and_gate(walk, tile * kTile, v, z, in.share, out);
      } else {
#pragma unroll
        for (int k = 0; k < kTile; ++k) {
          const int i = tile * kTile + k;
          if (walk.has(i)) out[walk.at + i * walk.step] = from_float<T>(v[k]);
        }
      }
    }
  }
  if constexpr (!kFinish) {
    if (!walk.live()) return;
    store_state(chunks.states + summary * kStates, state);
    chunks.delta_sums[summary] = delta_sum;
  }
}

template <typename T, bool kFinish, int kPieces>
__global__ void __launch_bounds__(2 * kDirectionThreads, 3) block_scan_kernel(const __grid_constant__ ScanJob<T> job) {
  extern __shared__ float4 shared[];
  __shared__ PairTable table;
  table.fill(job.s, blockIdx.x / job.s.groups * int64_t{job.s.subs});
  const int direction = threadIdx.x / kDirectionThreads, lane = threadIdx.x % kDirectionThreads;
  float* memory = reinterpret_cast<float*>(shared) + direction * stage_floats(job.s.subs, kFinish ? 32 : 16);
  // Where a summary stages several pieces it has code for each direction: tensors and strides take no registers there.
  if constexpr (kFinish || kPieces == 1) {
    walk_direction<T, kFinish, kPieces>(job, table, memory, direction, lane);
  } else if (direction == 0) {
    walk_direction<T, kFinish, kPieces>(job, table, memory, 0, lane);
  } else {
    walk_direction<T, kFinish, kPieces>(job, table, memory, 1, lane);
  }
}

template <typename T, bool kFinish>
void launch(const Sequences& s, const MambaBlockArgs& args, const Projected (&rows)[2], const Chunks& chunks,
            int64_t first_pair, const void* z, void* y, Stream stream) {
  ScanInputs<T> in{};
  for (int p = 0; p < 2; ++p) {
    in.u[p] = static_cast<const T*>(rows[p].u);
    in.delta[p] = static_cast<const T*>(rows[p].delta);
    in.proj[p] = static_cast<const T*>(rows[p].proj);
    in.A_log[p] = static_cast<const float*>(args.direction[p].A_log);
    in.D_skip[p] = static_cast<const float*>(args.direction[p].D_skip);
  }
  in.z = static_cast<const T*>(z);
  in.share = args.divide_out ? 0.5f : 1.0f;
  constexpr int kColumns = kFinish ? 32 : 16;
  const int64_t blocks = ceil_div(s.pairs(), s.subs) * s.groups;
  const size_t bytes = static_cast<size_t>(2 * stage_floats(s.subs, kColumns)) * sizeof(float);
  dispatch_pieces(s.subs, kColumns, [&]<int kPieces>() {
    const auto kernel = block_scan_kernel<T, kFinish, kPieces>;
    PM_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)));
    kernel<<<static_cast<unsigned>(blocks), 2 * kDirectionThreads, bytes, raw(stream)>>>(
        {s, in, chunks, first_pair, static_cast<T*>(y)});
    PM_CHECK_LAUNCH(kFinish ? "block_scan finish" : "block_scan summary");
  });
}

}  // namespace

void summarise(const Sequences& s, const MambaBlockArgs& args, const Projected (&rows)[2], const Chunks& chunks,
               int64_t first_pair, Stream stream) {
  dispatch_float(args.dtype,
                 [&]<typename T>() { launch<T, false>(s, args, rows, chunks, first_pair, nullptr, nullptr, stream); });
}

void finish(const Sequences& s, const MambaBlockArgs& args, const Projected (&rows)[2], const Chunks& chunks,
            int64_t first_pair, const void* z, void* y, Stream stream) {
  if (finish_wide(s, args, rows, chunks, first_pair, z, y, stream)) return;
  dispatch_float(args.dtype, [&]<typename T>() { launch<T, true>(s, args, rows, chunks, first_pair, z, y, stream); });
}

}  // namespace pm::cuda::block
