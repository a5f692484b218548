// The finishing scan of wide layers: block_scan.cu's finish where a block holds one chunk of 50 channels and more. Maths, passes
// and how the directions meet in the middle of a chunk: there.
//
// block   : 96 threads forward, 96 in reverse. Two neighbouring lanes share two channels, each with 8 of the 16 states:
//
//                          channel c          channel c + 1
//             lane 2k      states 0-3, 8-11   the same
//             lane 2k + 1  states 4-7, 12-15  the same
//
//           so a quad of B or C that a lane reads from shared memory serves two channels: 4 reads of 16 bytes a step instead of
//           8, which cost as many cycles as the exponentials. Of every two steps a lane completes y for one: it adds its
//           neighbour's half, and loads z, loads and stores y for that step alone.
//           Where blocks are few (at most one per multiprocessor), two lanes share one channel instead: twice the warps, each
//           with half the work.
// launch  : chunks * groups blocks, three per multiprocessor (96 registers), or four (80) where that ends with fewer idle
//           places. With at most two blocks per multiprocessor every warp stages B and C for itself and waits for no other.
// shared  : B and C of 4 steps, two buffers per direction (or warp): 3 to 7 KiB
// traffic : reads u, delta, B, C of both directions and z, writes y, and half of y once more each way (L2).
// floor   : as block_scan.cu: 128 cycles of a scheduler for 32 channels of a token, and 8 for sigmoid; 126 instructions (SASS,
//           bf16; a lane per channel: 146).
// measured: H200, bf16, one slide, d_inner 96, 1.25 M tokens: 1,239 us (a lane per channel: 1,366); 128 images, d_inner 384, 785
//           tokens: 557 us (617); d_inner 96, 3,137 tokens: 775 us (994). Chunks of 6 to 48 channels side by side in a block
//           were slower this way (48: 2,090 instead of 1,433 us): they stay in block_scan.cu.
// numerics: float32 state and sums; ex2.approx with A * log2(e), 2 ulp. deterministic: no atomics.
#include "cuda/scan/block.cuh"

namespace pm::cuda::block {
namespace {

constexpr int64_t kMaxElements = (int64_t{1} << 32) - 1;  // of u in a launch
constexpr int64_t kProcessors = 132;                      // of the reference GPU; results do not depend on it
constexpr int kColumns = 32;                              // B and C

// What a launch walks, and where results go. states: of all chunks, null where each starts from zero.
template <typename T>
struct FinishJob {
  Sequences s;
  const T *u[2], *delta[2], *proj[2], *z;
  const float *A_log[2], *D_skip[2], *states;
  int64_t pairs, first_chunk;
  float share;
  T* y;
};

// A lane's place: kChannels neighbouring channels of the block's chunk, whose 16 states it shares with its neighbour. 32 bits
// hold every element of a launch (kMaxElements), and an unsigned one is an address in one instruction; steps back wrap round.
template <int kChannels>
struct PairLane {
  int half, channel;      // 0 or 1: which states, which of two steps; first channel
  unsigned at, step;      // element of step 0; to the next
  unsigned first, steps;  // steps [first, first + steps) exist

  __device__ PairLane(const Sequences& s, const SubTable& table, int group, int lane, bool reverse) {
    const int place = lane / 2 * kChannels;
    half = lane % 2;
    channel = group * s.width + place;
    steps = place < s.width && channel < s.d_inner ? table.len[0] : 0;
    first = reverse ? s.chunk_len - steps : 0;
    channel = min(channel, s.d_inner - kChannels);
    at = (static_cast<unsigned>(table.row[0]) + (reverse ? s.chunk_len - 1 : 0)) * s.d_inner + channel;
    step = reverse ? -s.d_inner : s.d_inner;
  }
  __device__ bool live() const { return steps > 0; }
  __device__ bool has(unsigned i) const { return i - first < steps; }
  __device__ unsigned element(unsigned i) const { return at + i * step; }
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

  // A_log of the lane's first channel; the decay of a lane without channels is 1.
  __device__ void load_decay(const float* __restrict__ A_log, int half, bool live) {
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
#pragma unroll
      for (int n = 0; n < kStates / 2; ++n) {
        a2[c][n] = live ? -expf(A_log[c * kStates + number(n, half)]) * kLog2e : 0.0f;
      }
    }
  }
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
  // One step; adds <C, s> of the lane's states to y.
  __device__ __forceinline__ void advance(const float (&delta)[kChannels], const float (&u)[kChannels], PairRow row,
                                          int half, float (&y)[kChannels]) {
#pragma unroll
    for (int q = 0; q < 2; ++q) {
      const float4 b = row[2 * q + half], v = row[4 + 2 * q + half];
      const float B[4] = {b.x, b.y, b.z, b.w}, C[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
      for (int c = 0; c < kChannels; ++c) {
        const float delta_u = delta[c] * u[c];
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          float& s = state[c][4 * q + k];
          s = fmaf(exp2_approx(delta[c] * a2[c][4 * q + k]), s, delta_u * B[k]);
          y[c] = fmaf(C[k], s, y[c]);
        }
      }
    }
  }
};

// One direction of a block, as one of its threads sees it.
template <typename T, int kChannels, int kPieces, int kBlocks>
struct DirectionFinish {
  static constexpr int kAhead = kBlocks == 4 ? 2 : kTile;  // steps whose u and delta are on their way: registers
  using Values = Vector<T, kChannels>;
  const T *u_rows, *delta_rows, *z_rows;
  T* y_rows;
  float share;
  int direction;
  PairLane<kChannels> lane;
  PairStage<T, kColumns, kPieces> stage;
  States<kChannels> states;
  Values u[kAhead], delta[kAhead];                       // of the next steps
  Values gates[kTile / 2] = {}, others[kTile / 2] = {};  // of the steps whose results are the lane's
  float D[kChannels] = {}, even[kChannels];

  __device__ DirectionFinish(const FinishJob<T>& job, const PairTable& table, float* memory, int p, int thread)
      : u_rows(p == 0 ? job.u[0] : job.u[1]),
        delta_rows(p == 0 ? job.delta[0] : job.delta[1]),
        z_rows(job.z),
        y_rows(job.y),
        share(job.share),
        direction(p),
        lane(job.s, table, blockIdx.x % job.s.groups, thread, p == 1),
        stage(job.s, table, p == 0 ? job.proj[0] : job.proj[1], memory, thread, p == 1) {
    states.load_decay((p == 0 ? job.A_log[0] : job.A_log[1]) + lane.channel * kStates, lane.half, lane.live());
    const int64_t chunk = p * job.pairs + job.first_chunk + blockIdx.x / job.s.groups;
    if (lane.live() && job.states != nullptr) {
      states.load(job.states + (chunk * job.s.d_inner + lane.channel) * kStates, lane.half);
    }
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {  // its neighbour leaves D * u to half 0
      if (lane.half == 0) D[c] = (p == 0 ? job.D_skip[0] : job.D_skip[1])[lane.channel + c];
    }
  }

  __device__ __forceinline__ void enter() {
    stage.begin(0);
#pragma unroll
    for (unsigned k = 0; k < kAhead; ++k) {
      u[k] = lane.load(u_rows, k);
      delta[k] = lane.load(delta_rows, k);
    }
  }

  // Leaves a tile's y (kGate false), or adds the other direction's, gates and writes the result.
  template <bool kGate>
  __device__ __forceinline__ void walk_tile(int tile, int tiles) {
    const unsigned i = tile * kTile;
    stage.finish(tile & 1);
    stage.synchronise(direction);
    if (tile + 1 < tiles) stage.begin(~tile & 1);
    if constexpr (kGate) {
#pragma unroll
      for (unsigned j = 0; j < kTile / 2; ++j) {
        lane.replace(gates[j], z_rows, i + 2 * j + lane.half);
        lane.replace(others[j], static_cast<const T*>(y_rows), i + 2 * j + lane.half);
      }
    }
#pragma unroll
    for (int k = 0; k < kTile; ++k) {
      float u_now[kChannels], delta_now[kChannels], v[kChannels];
#pragma unroll
      for (int c = 0; c < kChannels; ++c) {
        u_now[c] = u[k % kAhead][c], delta_now[c] = delta[k % kAhead][c];
        v[c] = D[c] * u_now[c];
      }
      states.advance(delta_now, u_now, stage.row(tile & 1, 0, k), lane.half, v);
      lane.replace(u[k % kAhead], u_rows, i + k + kAhead);
      delta[k % kAhead] = lane.load(delta_rows, i + k + kAhead);  // behind the chunk: zeros
      put<kGate>(i, k, v);
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
    if constexpr (kGate) {
#pragma unroll
      for (int c = 0; c < kChannels; ++c) {
        const float gate = gates[k / 2][c];
        v[c] = (v[c] + others[k / 2][c]) * share * gate * sigmoid(gate);
      }
    }
    const unsigned own = i + k - 1 + lane.half;
    if (lane.has(own)) *reinterpret_cast<Values*>(y_rows + lane.element(own)) = Values::of(v);
  }
};

// Shared memory of a direction: of one stage, or of one for each of its warps.
constexpr int64_t direction_floats(bool own) {
  return (own ? kDirectionThreads / kWarp : 1) * stage_floats(1, kColumns);
}

// All threads of a block meet once, the directions from different places in the code, where bar.sync must not be.
struct Meeting {
  uint64_t barrier;

  __device__ unsigned address() { return static_cast<unsigned>(__cvta_generic_to_shared(&barrier)); }
  // By one thread, before a barrier of the block.
  __device__ void prepare() {
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(address()), "n"(2 * kDirectionThreads) : "memory");
  }
  __device__ void wait() {
    unsigned done = 0;
    asm volatile("{ .reg .b64 state; mbarrier.arrive.shared.b64 state, [%0]; }" ::"r"(address()) : "memory");
    while (done == 0) {
      asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared.b64 p, [%1], 0; selp.u32 %0, 1, 0, p; }"
                   : "=r"(done)
                   : "r"(address())
                   : "memory");
    }
  }
};

// With at least three blocks on a multiprocessor registers are scarce: each direction has its own code then, in which its
// tensors and strides are constants. With two, one code for both is faster: less of it for the instruction cache.
template <typename T, int kChannels, int kPieces, int kBlocks>
__global__ void __launch_bounds__(2 * kDirectionThreads, kBlocks)
    block_finish_kernel(const __grid_constant__ FinishJob<T> job) {
  extern __shared__ float4 shared[];
  __shared__ PairTable table;
  __shared__ Meeting meeting;
  constexpr bool kOneCode = kBlocks == 2;
  if (!kOneCode && threadIdx.x == 0) meeting.prepare();
  table.fill(job.s, blockIdx.x / job.s.groups);
  const auto run = [&](int direction, int thread) __attribute__((always_inline)) {
    float* memory = reinterpret_cast<float*>(shared) + direction * direction_floats(kPieces == kOwnPieces);
    DirectionFinish<T, kChannels, kPieces, kBlocks> scan(job, table, memory, direction, thread);
    const int tiles = job.s.chunk_len / kTile, half = tiles / 2;
    scan.enter();
    for (int tile = 0; tile < half; ++tile) scan.template walk_tile<false>(tile, tiles);
    kOneCode ? __syncthreads() : meeting.wait();  // the other direction has left its y in the second half
    for (int tile = half; tile < tiles; ++tile) scan.template walk_tile<true>(tile, tiles);
  };
  const int thread = threadIdx.x % kDirectionThreads;
  if constexpr (kOneCode) {
    run(threadIdx.x / kDirectionThreads, thread);
  } else {
    threadIdx.x < kDirectionThreads ? run(0, thread) : run(1, thread);
  }
}

// How the channels of a chunk lie in blocks, `channels` to two lanes.
Sequences arranged(Sequences s, int channels) {
  s.groups = static_cast<int>(ceil_div(s.d_inner, kDirectionThreads / 2 * channels));
  s.width = static_cast<int>(ceil_div(ceil_div(s.d_inner, s.groups), channels)) * channels;
  return s;
}
int64_t blocks_of(const Sequences& s) { return s.pairs() * s.groups; }

// Whether four blocks a multiprocessor instead of three end a launch with a tenth fewer places, idle ones included: 512 blocks,
// a batch of 128 images in the layers of 384 channels, are one round instead of two.
bool four_at_once(int64_t blocks) {
  const int64_t fours = 4 * ceil_div(blocks, 4 * kProcessors), threes = 3 * ceil_div(blocks, 3 * kProcessors);
  return 10 * fours < 9 * threes;
}

template <typename T, int kChannels>
void launch(const FinishJob<T>& job, Stream stream) {
  const int64_t blocks = blocks_of(job.s);
  const auto start = [&]<int kPieces, int kBlocks>() {
    const size_t bytes = 2 * direction_floats(kPieces == kOwnPieces) * sizeof(float);
    block_finish_kernel<T, kChannels, kPieces, kBlocks>
        <<<static_cast<unsigned>(blocks), 2 * kDirectionThreads, bytes, raw(stream)>>>(job);
    PM_CHECK_LAUNCH("block_finish");
  };
  if (blocks <= 2 * kProcessors) return start.template operator()<kOwnPieces, 2>();
  if constexpr (kChannels == 2) {
    if (four_at_once(blocks)) return start.template operator()<1, 4>();
    start.template operator()<1, 3>();
  }
}

}  // namespace

bool finish_wide(const Sequences& sequences, const MambaBlockArgs& args, const Projected (&rows)[2],
                 const Chunks& chunks, int64_t first_pair, const void* z, void* y, Stream stream) {
  if (sequences.subs > 1 || sequences.d_inner % 2 == 1 || sequences.rows() > kMaxElements / sequences.d_inner) {
    return false;
  }
  // Choices of the shape alone.
  const bool few = blocks_of(arranged(sequences, 2)) <= kProcessors;
  dispatch_float(args.dtype, [&]<typename T>() {
    FinishJob<T> job{};
    job.s = arranged(sequences, few ? 1 : 2);
    for (int p = 0; p < 2; ++p) {
      job.u[p] = static_cast<const T*>(rows[p].u);
      job.delta[p] = static_cast<const T*>(rows[p].delta);
      job.proj[p] = static_cast<const T*>(rows[p].proj);
      job.A_log[p] = static_cast<const float*>(args.direction[p].A_log);
      job.D_skip[p] = static_cast<const float*>(args.direction[p].D_skip);
    }
    job.z = static_cast<const T*>(z);
    job.states = chunks.states;
    job.pairs = chunks.pairs;
    job.first_chunk = first_pair;
    job.share = args.divide_out ? 0.5f : 1.0f;
    job.y = static_cast<T*>(y);
    few ? launch<T, 1>(job, stream) : launch<T, 2>(job, stream);
  });
  return true;
}

}  // namespace pm::cuda::block
