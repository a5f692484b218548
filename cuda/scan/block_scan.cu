// Scans of the fused Mamba block, both directions in one launch, 16 states.
//
// maths   : s_i[n] = exp(delta_i * A[n]) * s_{i-1}[n] + delta_i * u_i * B_i[n];   y_i = sum_n C_i[n] * s_i[n] + D * u_i
//           y = (y_forward + y_reverse) * share * silu(z)
// passes  : the recurrence is associative in (decay, state), so chunks are walked at once:
//           summary  each chunk from a zero state: its last state, and its sum of delta (its decay is exp(A * sum))
//           carry    over the chunks (block_carry.cu): what enters each
//           finish   each chunk again from there, with the output. One chunk per sequence: finish alone.
// block   : 96 threads forward, 96 in reverse, over the same chunks and channels (block.cuh). Two neighbouring lanes share two
//           channels (or one, see launch), each with 8 of the 16 states: a quad of B or C that a lane reads serves two
//           channels. Of every two steps a lane completes y for one. The directions meet in the middle of the chunk:
//
//             tokens of the chunk   0 . . . . . . . half . . . . . . . end
//             forward               ---- stores y ---->|- adds, gates ->
//             reverse               <- adds, gates ----|<-- stores y ---
//
//           Whoever comes first to a token leaves its y there, whoever comes second adds its own, gates and writes the
//           result: no second buffer, one gate for both.
// launch  : (chunks / subs) * groups blocks, three per multiprocessor (96 registers), four (80) where finish ends with fewer
//           idle places. Two lanes share one channel where d_inner is odd, and where two channels would make no more than a
//           block per multiprocessor. A finish of at most two blocks per multiprocessor, with one chunk each, lets every warp
//           stage B and C for itself: it waits for no other.
// shared  : B and C of 4 steps, two buffers per direction (or warp): 3 to 34 KiB
// traffic : summary reads u, delta, B of both directions; finish reads u, delta, B, C of both and z, writes y, and half of
//           y once more each way (L2).
// floor   : an exponential per state, token and direction and pass, 16 per clock and multiprocessor: 128 cycles of a scheduler
//           for 32 channels of a token, and in finish 8 for sigmoid. Instructions (SASS, bf16) for the same: summary 94 in
//           wide layers, 100 at 6 channels; finish 126 and 147. 16 bytes that every lane of a warp reads from shared memory:
//           2 and 4 times.
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

// All threads, each direction from its own place in the code.
__device__ __forceinline__ void block_barrier() {
  asm volatile("bar.sync 3, %0;" ::"n"(2 * kDirectionThreads) : "memory");
}

constexpr int64_t kMaxElements = (int64_t{1} << 32) - 1;  // of u in a launch
constexpr int64_t kProcessors = 132;                      // of the reference GPU; results do not depend on it
constexpr int kSubPad = 8;  // the quads that two lanes read of four chunks lie in different banks

// The second half of a finish: adds the other direction's y, which lies where the result goes, and gates.
template <typename T, int kChannels>
__device__ __forceinline__ void add_and_gate(const Vector<T, kChannels>& gates, const Vector<T, kChannels>& others,
                                             float share, float (&v)[kChannels]) {
#pragma unroll
  for (int c = 0; c < kChannels; ++c) {
    const float gate = gates[c];
    v[c] = (v[c] + others[c]) * share * gate * sigmoid(gate);
  }
}

// A lane's place: kChannels neighbouring channels of a chunk, whose 16 states it shares with its neighbour, and what it reads
// and writes of them. 32 bits hold every element of a launch (kMaxElements), and an unsigned one is an address in one
// instruction.
template <int kChannels, bool kReverse>
struct PairLane {
  int half, sub, channel;  // 0 or 1: which states, which steps of a pair of results; chunk of the block; first channel
  unsigned at, d_inner;    // element of step 0
  unsigned first, steps;   // steps [first, first + steps) exist

  __device__ PairLane(const Sequences& s, const SubTable& table, int group, int lane) : d_inner(s.d_inner) {
    const int place = lane / 2 * kChannels;
    half = lane % 2;
    sub = min(place / s.width, s.subs - 1);
    channel = group * s.width + place % s.width;
    const int len = place / s.width < s.subs && channel < s.d_inner ? table.len[sub] : 0;
    first = kReverse ? s.chunk_len - len : 0;
    steps = len;
    channel = min(channel, s.d_inner - kChannels);
    at = (static_cast<unsigned>(table.row[sub]) + (kReverse ? s.chunk_len - 1 : 0)) * d_inner + channel;
  }
  __device__ bool live() const { return steps > 0; }
  __device__ bool has(unsigned i) const { return i - first < steps; }
  __device__ unsigned element(unsigned i) const { return kReverse ? at - i * d_inner : at + i * d_inner; }
  template <typename T>
  __device__ Vector<T, kChannels> load(const T* source, unsigned i) const {
    return load_vector<T, kChannels>(has(i), source + element(i));
  }
  // Leaves v as it is where there is no such step: for what then has no weight.
  template <typename T>
  __device__ void replace(Vector<T, kChannels>& v, const T* source, unsigned i) const {
    if (has(i)) v = *reinterpret_cast<const Vector<T, kChannels>*>(source + element(i));
  }
};

// The lane's states: quads half and half + 2 of each channel.
template <int kChannels>
struct States {
  float a2[kChannels][kStates / 2], state[kChannels][kStates / 2] = {};

  __device__ static int number(int n, int half) { return 8 * (n / 4) + 4 * half + n % 4; }

  template <bool kReverse>
  __device__ void load_decay(const float* __restrict__ A_log, const PairLane<kChannels, kReverse>& lane) {
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
#pragma unroll
      for (int n = 0; n < kStates / 2; ++n) {
        const float log = A_log[(lane.channel + c) * kStates + number(n, lane.half)];
        a2[c][n] = lane.live() ? -expf(log) * kLog2e : 0.0f;
      }
    }
  }
  // first: of the channel of c = 0, in (.., channels, 16).
  __device__ void load(const float* first, int half) {
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
#pragma unroll
      for (int n = 0; n < kStates / 2; n += 4) {
        const float4 v = *reinterpret_cast<const float4*>(first + c * kStates + number(n, half));
        state[c][n] = v.x, state[c][n + 1] = v.y, state[c][n + 2] = v.z, state[c][n + 3] = v.w;
      }
    }
  }
  __device__ void store(float* first, int half) const {
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
#pragma unroll
      for (int n = 0; n < kStates / 2; n += 4) {
        *reinterpret_cast<float4*>(first + c * kStates + number(n, half)) =
            make_float4(state[c][n], state[c][n + 1], state[c][n + 2], state[c][n + 3]);
      }
    }
  }
  // One step; adds <C, s> of the lane's states to y when the row holds C behind B.
  template <bool kOutput>
  __device__ __forceinline__ void advance(const float (&delta)[kChannels], const float (&u)[kChannels], PairRow row,
                                          int half, float (&y)[kChannels]) {
#pragma unroll
    for (int q = 0; q < 2; ++q) {
      const float4 b = row[2 * q + half], v = kOutput ? row[4 + 2 * q + half] : b;
      const float B[4] = {b.x, b.y, b.z, b.w}, C[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
      for (int c = 0; c < kChannels; ++c) {
        const float delta_u = delta[c] * u[c];
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          float& s = state[c][4 * q + k];
          s = fmaf(exp2_approx(delta[c] * a2[c][4 * q + k]), s, delta_u * B[k]);
          if constexpr (kOutput) y[c] = fmaf(C[k], s, y[c]);
        }
      }
    }
  }
};

// What a launch walks, and where results go.
template <typename T>
struct ScanJob {
  Sequences s;
  ScanInputs<T> in;
  Chunks chunks;
  int64_t first_chunk;
  T* y;
};

// One direction of a block, as one of its threads sees it.
template <typename T, bool kFinish, int kChannels, int kPieces, int kBlocks, bool kReverse>
struct DirectionScan {
  static constexpr int kAhead = kBlocks == 4 ? 2 : kTile;  // steps whose u and delta are on their way: registers
  using Values = Vector<T, kChannels>;
  using Stage = PairStage<T, kFinish ? 32 : 16, kPieces, kSubPad>;
  const ScanJob<T>& job;
  PairLane<kChannels, kReverse> lane;
  Stage stage;
  States<kChannels> states;
  int64_t summary;                                       // the lane's channel among the chunk summaries
  Values u[kAhead], delta[kAhead];                       // of the next steps
  Values gates[kTile / 2] = {}, others[kTile / 2] = {};  // of the steps whose results are the lane's
  float D[kChannels] = {}, delta_sum[kChannels] = {}, even[kChannels];

  __device__ DirectionScan(const ScanJob<T>& j, const PairTable& table, int64_t first_pair, float* memory, int thread)
      : job(j),
        lane(j.s, table, blockIdx.x % j.s.groups, thread),
        stage(j.s, table, j.in.proj[kReverse], memory, thread, kReverse),
        summary(((kReverse ? j.chunks.pairs : 0) + j.first_chunk + first_pair + lane.sub) * j.s.d_inner +
                lane.channel) {
    states.load_decay(j.in.A_log[kReverse], lane);
    if constexpr (kFinish) {
      if (lane.live() && j.chunks.states != nullptr) states.load(j.chunks.states + summary * kStates, lane.half);
#pragma unroll
      for (int c = 0; c < kChannels; ++c) {  // its neighbour leaves D * u to half 0
        if (lane.half == 0) D[c] = j.in.D_skip[kReverse][lane.channel + c];
      }
    }
  }

  // Leaves a tile's y (kGate false), or adds the other direction's, gates and writes the result.
  template <bool kGate>
  __device__ __forceinline__ void walk_tile(int tile, int tiles) {
    const unsigned i = tile * kTile;
    stage.finish(tile & 1);
    stage.synchronise(kReverse);
    if (tile + 1 < tiles) stage.begin(~tile & 1);
    if constexpr (kGate) {
#pragma unroll
      for (unsigned j = 0; j < kTile / 2; ++j) {
        lane.replace(gates[j], job.in.z, i + 2 * j + lane.half);
        lane.replace(others[j], static_cast<const T*>(job.y), i + 2 * j + lane.half);
      }
    }
#pragma unroll
    for (int k = 0; k < kTile; ++k) {
      float u_now[kChannels], delta_now[kChannels], v[kChannels];
#pragma unroll
      for (int c = 0; c < kChannels; ++c) {
        u_now[c] = u[k % kAhead][c], delta_now[c] = delta[k % kAhead][c];
        v[c] = D[c] * u_now[c];
        if constexpr (!kFinish) delta_sum[c] += delta_now[c];
      }
      states.template advance<kFinish>(delta_now, u_now, stage.row(tile & 1, lane.sub, k), lane.half, v);
      lane.replace(u[k % kAhead], job.in.u[kReverse], i + k + kAhead);
      delta[k % kAhead] = lane.load(job.in.delta[kReverse], i + k + kAhead);  // behind the chunk: zeros
      if constexpr (kFinish) put<kGate>(i, k, v);
    }
  }

  // Of two steps, of which two lanes have half the sums each, a lane completes one.
  template <bool kGate>
  __device__ __forceinline__ void put(unsigned i, int k, float (&v)[kChannels]) {
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      if (k % 2 == 0) {
        even[c] = v[c];
      } else {
        const float sent = __shfl_xor_sync(0xffffffffu, lane.half == 0 ? v[c] : even[c], 1);
        v[c] = (lane.half == 0 ? even[c] : v[c]) + sent;
      }
    }
    if (k % 2 == 0) return;
    if constexpr (kGate) add_and_gate(gates[k / 2], others[k / 2], job.in.share, v);
    const unsigned own = i + k - 1 + lane.half;
    if (lane.has(own)) *reinterpret_cast<Values*>(job.y + lane.element(own)) = Values::of(v);
  }

  __device__ __forceinline__ void run() {
    const int tiles = job.s.chunk_len / kTile, first_half = kFinish ? tiles / 2 : tiles;
    stage.begin(0);
#pragma unroll
    for (unsigned k = 0; k < kAhead; ++k) {
      u[k] = lane.load(job.in.u[kReverse], k);
      delta[k] = lane.load(job.in.delta[kReverse], k);
    }
    for (int tile = 0; tile < first_half; ++tile) walk_tile<false>(tile, tiles);
    if constexpr (kFinish) {
      block_barrier();  // the other direction has left its y there
      for (int tile = first_half; tile < tiles; ++tile) walk_tile<true>(tile, tiles);
    } else if (lane.live()) {
      states.store(job.chunks.states + summary * kStates, lane.half);
#pragma unroll
      for (int c = 0; c < kChannels; ++c) {
        if (lane.half == 0) job.chunks.delta_sums[summary + c] = delta_sum[c];
      }
    }
  }
};

// Shared memory of a direction: of one stage, or of one for each of its warps.
constexpr int64_t direction_floats(int subs, int columns, bool own) {
  return (own ? kDirectionThreads / 32 : 1) * stage_floats(subs, columns, kSubPad);
}

template <typename T, bool kFinish, int kChannels, int kPieces, int kBlocks>
__global__ void __launch_bounds__(2 * kDirectionThreads, kBlocks)
    block_scan_kernel(const __grid_constant__ ScanJob<T> job) {
  extern __shared__ float4 shared[];
  __shared__ PairTable table;
  float* memory = reinterpret_cast<float*>(shared);
  const int64_t first_pair = blockIdx.x / job.s.groups * int64_t{job.s.subs};
  table.fill(job.s, first_pair);
  const int thread = threadIdx.x % kDirectionThreads;
  if (threadIdx.x < kDirectionThreads) {
    DirectionScan<T, kFinish, kChannels, kPieces, kBlocks, false>(job, table, first_pair, memory, thread).run();
  } else {
    memory += direction_floats(job.s.subs, kFinish ? 32 : 16, kPieces == kOwnPieces);
    DirectionScan<T, kFinish, kChannels, kPieces, kBlocks, true>(job, table, first_pair, memory, thread).run();
  }
}

// How the channels of a chunk lie in blocks of this scan, `channels` to two lanes.
Sequences arranged(Sequences s, int channels) {
  const int most = kDirectionThreads / 2 * channels;
  s.groups = static_cast<int>(ceil_div(s.d_inner, most));
  s.width = static_cast<int>(ceil_div(ceil_div(s.d_inner, s.groups), channels)) * channels;
  s.subs = std::min(most / s.width, kMaxSubs);
  return s;
}
int64_t blocks_of(const Sequences& s) { return ceil_div(s.pairs(), s.subs) * s.groups; }

// Two lanes share one channel instead of two where two would leave multiprocessors with one block: more warps, each with half
// the work. A function of the shape alone.
int channels_of(const Sequences& s) { return s.d_inner % 2 == 1 || blocks_of(arranged(s, 2)) <= kProcessors ? 1 : 2; }

// Whether four blocks a multiprocessor instead of three end a launch with a tenth fewer places, idle ones included: 512 blocks,
// a batch of 128 images in the layers of 384 channels, are one round instead of two.
bool four_at_once(int64_t blocks) {
  const int64_t fours = 4 * ceil_div(blocks, 4 * kProcessors), threes = 3 * ceil_div(blocks, 3 * kProcessors);
  return 10 * fours < 9 * threes;
}

template <typename T, bool kFinish, int kChannels>
void launch(const Sequences& sequences, const MambaBlockArgs& args, const Projected (&rows)[2], const Chunks& chunks,
            int64_t first_pair, const void* z, void* y, Stream stream) {
  if (sequences.rows() > kMaxElements / sequences.d_inner) throw ShapeError("block_scan: too many values in a launch");
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
  const Sequences s = arranged(sequences, kChannels);
  const int64_t blocks = blocks_of(s);
  const ScanJob<T> job{s, in, chunks, first_pair, static_cast<T*>(y)};
  const auto start = [&]<int kPieces, int kBlocks>() {
    const auto kernel = block_scan_kernel<T, kFinish, kChannels, kPieces, kBlocks>;
    const int bytes = static_cast<int>(2 * direction_floats(s.subs, kColumns, kPieces == kOwnPieces) * sizeof(float));
    PM_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
    kernel<<<static_cast<unsigned>(blocks), 2 * kDirectionThreads, bytes, raw(stream)>>>(job);
    PM_CHECK_LAUNCH(kFinish ? "block_scan finish" : "block_scan summary");
  };
  if constexpr (kFinish) {
    if (s.subs == 1 && blocks <= 2 * kProcessors) return start.template operator()<kOwnPieces, 2>();
  }
  dispatch_pieces(s.subs, kColumns, [&]<int kPieces>() {
    if constexpr (kFinish && kChannels == 2 && kPieces == 1) {
      if (four_at_once(blocks)) return start.template operator()<kPieces, 4>();
    }
    start.template operator()<kPieces, 3>();
  });
}

template <bool kFinish>
void launch_any(const Sequences& s, const MambaBlockArgs& args, const Projected (&rows)[2], const Chunks& chunks,
                int64_t first_pair, const void* z, void* y, Stream stream) {
  dispatch_float(args.dtype, [&]<typename T>() {
    if (channels_of(s) == 2) {
      launch<T, kFinish, 2>(s, args, rows, chunks, first_pair, z, y, stream);
    } else {
      launch<T, kFinish, 1>(s, args, rows, chunks, first_pair, z, y, stream);
    }
  });
}

}  // namespace

void summarise(const Sequences& s, const MambaBlockArgs& args, const Projected (&rows)[2], const Chunks& chunks,
               int64_t first_pair, Stream stream) {
  launch_any<false>(s, args, rows, chunks, first_pair, nullptr, nullptr, stream);
}

void finish(const Sequences& s, const MambaBlockArgs& args, const Projected (&rows)[2], const Chunks& chunks,
            int64_t first_pair, const void* z, void* y, Stream stream) {
  launch_any<true>(s, args, rows, chunks, first_pair, z, y, stream);
}

}  // namespace pm::cuda::block
