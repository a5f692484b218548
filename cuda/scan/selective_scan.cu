// The gated selective scan of one direction, forward. Layout of a warp and masks: selective_scan.cuh. For d_state 9 to 16 most
// shapes run the kernels of selective_scan_lane.cuh instead, with the same passes: see plan_lanes.
//
// maths   : s_i = exp(delta_i * A) * s_{i-1} + delta_i * B_i * u_i;  out_i = (<C_i, s_i> + D_skip * u_i) * silu(z_i)
// shapes  : u, delta, z, out (batch, seq_len, d_inner); B, C (batch, seq_len, d_state); A (d_inner, d_state)
// passes  : the recurrence is associative in (decay, state), so the sequence is cut into chunks:
//           1. summary: each chunk from a zero state; its end state and its sum of delta, as its decay is exp(A * sum)
//           2. carry  : over the chunks of each (batch, channel, state), in fixed order; gives the state entering each
//                       chunk
//           3. finish : each chunk again from that state, with the output
//           With one chunk only pass 3 runs.
// launch  : 4 warps a block, each (batch, chunk, 32 / kLanes channels). The chunk depends on the shape alone: one chunk
//           from kEnoughWarps warps on, else about kTargetWarps warps in all, 64 tokens at least. d_state 16, batch 1:
//           d_inner 6, seq_len 1,048,576: 8192 warps of 128 tokens; d_inner 768, seq_len 50: 96 warps of 50 tokens.
// traffic : pass 1 reads u, delta, B; pass 3 reads u, delta, z, B, C and writes out. With float32 and d_state 16 that
//           is 24 bytes per element of u and 192 per token; summaries add 4 * d_state / chunk_len bytes per element,
//           twice. Two exponentials per state and token: at 16 per clock and multiprocessor the exp unit is the floor
//           from d_inner 6 on: 2 * 16 * 8 * 1,048,576 (two idle channels) take 72 us at 132 multiprocessors and 1.76
//           GHz.
// scratch : (d_state + 1) / chunk_len floats per element of u
// numerics: float32 state and sums for any storage; ex2.approx with A * log2(e), 2 ulp. deterministic: no atomics
#include "cuda/scan/selective_scan_lane.cuh"

namespace pm::cuda {
namespace scan {
namespace {

constexpr int64_t kEnoughWarps = 2048;      // that one chunk per sequence is enough
constexpr int64_t kEnoughLaneWarps = 1024;  // the same for the lane kernels, whose 16 states hide more latency
constexpr int64_t kTargetWarps = 8192;
constexpr int64_t kTargetLaneWarps =
    132 * 20 * 4;  // four full rounds of 20 warps per multiprocessor of the reference GPU
constexpr int64_t kMinChunk = 64;

// One row strand per thread: columns of (d_inner, d_state) side by side, kStrands runs of chunks above each other.
// Each strand folds its run, the first strand chains the folds, and each strand walks its run again with what enters
// it.
template <int kStrands, int kColumns>
__global__ void __launch_bounds__(kStrands* kColumns)
    selective_scan_carry_kernel(Problem p, const float* __restrict__ A, Chunks chunks, int64_t column_blocks) {
  constexpr int kBatch = kStrands * kColumns < 1024 ? 8 : 4;  // loads in flight, within the registers of the block
  __shared__ float fold_state[kStrands][kColumns], fold_decay[kStrands][kColumns], entering[kStrands][kColumns];
  const int64_t columns = p.d_inner * p.d_state;
  const int64_t batch = blockIdx.x / column_blocks;
  const int64_t column = blockIdx.x % column_blocks * kColumns + threadIdx.x;
  const bool live = column < columns, backward = blockIdx.y == 1;
  const int64_t channel = live ? column / p.d_state : 0;
  const float a2 = live ? A[column] * kLog2e : 0.0f;
  float* values = (backward ? chunks.adjoints : chunks.states) + batch * p.chunks * columns + column;
  const float* deltas = chunks.delta_sums + batch * p.chunks * p.d_inner + channel;
  const int64_t run = (p.chunks + kStrands - 1) / kStrands;
  const int64_t first = min(int64_t{threadIdx.y} * run, p.chunks), last = live ? min(first + run, p.chunks) : first;

  float carried = 0.0f, delta_sum = 0.0f;
  const auto walk = [&](bool store) {
    for (int64_t base = first; base < last; base += kBatch) {
      float value[kBatch], delta[kBatch];
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        const int64_t chunk = backward ? p.chunks - 1 - (base + i) : base + i;
        value[i] = base + i < last ? values[chunk * columns] : 0.0f;
        delta[i] = base + i < last ? deltas[chunk * p.d_inner] : 0.0f;
      }
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        const int64_t chunk = backward ? p.chunks - 1 - (base + i) : base + i;
        if (store && base + i < last) values[chunk * columns] = carried;
        carried = fmaf(exp2_approx(delta[i] * a2), carried, value[i]);
        delta_sum += delta[i];
      }
    }
  };
  if constexpr (kStrands > 1) {
    walk(false);
    fold_state[threadIdx.y][threadIdx.x] = carried;
    fold_decay[threadIdx.y][threadIdx.x] = exp2_approx(delta_sum * a2);
    __syncthreads();
    if (threadIdx.y == 0) {
      float chain = 0.0f;
#pragma unroll 8
      for (int strand = 0; strand < kStrands; ++strand) {
        entering[strand][threadIdx.x] = chain;
        chain = fmaf(fold_decay[strand][threadIdx.x], chain, fold_state[strand][threadIdx.x]);
      }
    }
    __syncthreads();
    carried = entering[threadIdx.y][threadIdx.x];
  }
  walk(true);
}

template <int kStrands, int kColumns>
void launch_carry(const Problem& p, const float* A, const Chunks& chunks, Stream stream) {
  const int64_t column_blocks = ceil_div(p.d_inner * p.d_state, kColumns);
  const dim3 grid(static_cast<unsigned>(p.batch * column_blocks), chunks.adjoints != nullptr ? 2 : 1);
  const dim3 block(kColumns, kStrands);
  selective_scan_carry_kernel<kStrands, kColumns><<<grid, block, 0, raw(stream)>>>(p, A, chunks, column_blocks);
  PM_CHECK_LAUNCH("selective_scan_carry");
}

template <typename T, int kLanes>
__global__ void __launch_bounds__(kWarps* kWarp, kLanes == 4 ? 8 : 1)
    selective_scan_kernel(Problem p, Inputs<T> in, const float* __restrict__ states, T* __restrict__ out) {
  using L = Layout<kLanes>;
  __shared__ WarpTile<kLanes> tiles[kWarps];
  const unsigned work = blockIdx.x * kWarps + threadIdx.x / kWarp, groups = static_cast<unsigned>(p.groups);
  if (work >= p.works()) return;  // whole warps leave: nothing below waits for the block
  Walk<kLanes> walk(p, work / groups, work % groups, threadIdx.x % kWarp);
  WarpTile<kLanes>& tile = tiles[threadIdx.x / kWarp];
  float a2[kStatesPerLane], state[kStatesPerLane] = {};
  walk.load_states(p, in.A, a2);
#pragma unroll
  for (int k = 0; k < kStatesPerLane; ++k) a2[k] *= kLog2e;
  if (states != nullptr) walk.load_states(p, states + walk.batch_chunk * p.d_inner * p.d_state, state);
  const float bias = walk.live ? in.delta_bias[walk.channel] : 0.0f;
  const float D = walk.live ? in.D_skip[walk.channel] : 0.0f;

  float u[L::kItems], raw[L::kItems], z[L::kItems], B[L::kPairs], C[L::kPairs];
  const auto load = [&] {  // of the tile the walk stands on; all zeros behind the end
    walk.load_items(in.u, u);
    walk.load_items(in.delta, raw);
    walk.load_items(in.z, z);
    walk.load_pairs(p, in.B, B);
    walk.load_pairs(p, in.C, C);
  };
  load();
  while (walk.left > 0) {
    float skip[L::kItems], gate[L::kItems];
    __syncwarp();  // the lanes have read the tile before
#pragma unroll
    for (int j = 0; j < L::kItems; ++j) {
      skip[j] = D * u[j];
      gate[j] = z[j] * sigmoid(z[j]);
      if (!tile.step_exists(walk)) continue;
      const float delta = walk.has(j) ? softplus(raw[j] + bias) : 0.0f;
      tile.delta[tile.place(walk, j)] = make_float2(delta, delta * u[j]);
    }
    tile.put(tile.B, walk.lane, B);
    tile.put(tile.C, walk.lane, C);
    __syncwarp();
    const Walk<kLanes> here = walk;
    walk.advance(p, 1);
    load();
    float y[kSteps];
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      const float2 d = tile.delta[step * L::kChannels + walk.local];
      const float4 b = tile.four(tile.B, step, walk.sub), c = tile.four(tile.C, step, walk.sub);
      y[step] = 0.0f;
#pragma unroll
      for (int k = 0; k < kStatesPerLane; ++k) {
        state[k] = fmaf(exp2_approx(d.x * a2[k]), state[k], d.y * component(b, k));
        y[step] = fmaf(component(c, k), state[k], y[step]);
      }
    }
    scatter_sum<kLanes, L::kChannels>(y, walk.sub);  // leaves each lane the steps it loaded
#pragma unroll
    for (int j = 0; j < L::kItems; ++j) {
      if (here.has(j)) out[here.element(j)] = from_float<T>((y[j * kLanes % kSteps] + skip[j]) * gate[j]);
    }
  }
}

// Tokens of a chunk: a function of the shape, so that every GPU sums in the same order. warps: those that one chunk of every
// sequence keeps busy; chunks_per_warp: how many chunks share a warp.
int64_t chunk_length(int64_t warps, int64_t seq_len, int64_t enough_warps, int64_t target_warps,
                     int64_t chunks_per_warp) {
  if (warps >= enough_warps || seq_len <= kMinChunk) return seq_len;
  const int64_t share = ceil_div(ceil_div(warps * seq_len, target_warps * chunks_per_warp), kSteps) * kSteps;
  return std::max(share, kMinChunk);
}

// Geometry of the lane kernels (selective_scan_lane.cuh) for a shape; subs 0: the kernels above serve it better.
struct LanePlan {
  int subs = 0, width = 0;
  int64_t groups = 0, chunk_len = 0;
};

LanePlan plan_lanes(const SelectiveScanArgs& a) {
  if (a.d_state <= kLaneStates / 2 || a.d_state > kLaneStates) return {};
  const int subs = a.d_inner <= kWarp / 2 ? 2 : 1;
  const int64_t groups = ceil_div(a.d_inner, kWarp / subs), width = ceil_div(a.d_inner, groups);
  if (subs * a.d_inner < groups * kWarp * 7 / 10) return {};  // too many idle lanes
  // One pass over the whole sequence with four states per lane beats two passes.
  const int64_t quarter_warps = a.batch * ceil_div(a.d_inner, Layout<4>::kChannels);
  if (quarter_warps >= kEnoughWarps && a.batch * groups < kEnoughLaneWarps) return {};
  const int64_t chunk_len = chunk_length(a.batch * groups, a.seq_len, kEnoughLaneWarps, kTargetLaneWarps, subs);
  if (ceil_div(a.seq_len, chunk_len) < subs) return {};  // chunks that would share a warp are not there
  return {subs, static_cast<int>(width), groups, chunk_len};
}

template <typename T, int kSubs>
void run_lanes(const SelectiveScanArgs& args, const LanePlan& plan, Stream stream) {
  const Problem p = make_problem(args, plan.groups, plan.chunk_len);
  const Inputs<T> in = typed_inputs<T>(args);
  const int64_t channels = p.chunks > 1 ? p.batch * p.chunks * p.d_inner : 0;
  const Scratch<float> states(stream, channels * p.d_state), delta_sums(stream, channels);
  const Chunks chunks{states.get(), nullptr, delta_sums.get()};
  T* out = static_cast<T*>(args.out);
  const int64_t works = p.batch * ceil_div(p.chunks, kSubs) * p.groups;
  const unsigned blocks = blocks_for(works, kWarps);
  if (p.chunks > 1) {
    selective_scan_lane_kernel<T, kSubs, false>
        <<<blocks, kWarps * kWarp, 0, raw(stream)>>>(p, plan.width, static_cast<unsigned>(works), in, chunks, out);
    PM_CHECK_LAUNCH("selective_scan_lane summary");
    carry(p, in.A, chunks, stream);
  }
  selective_scan_lane_kernel<T, kSubs, true>
      <<<blocks, kWarps * kWarp, 0, raw(stream)>>>(p, plan.width, static_cast<unsigned>(works), in, chunks, out);
  PM_CHECK_LAUNCH("selective_scan_lane finish");
}

template <typename T, int kLanes>
void run(const SelectiveScanArgs& args, Stream stream) {
  const int64_t groups = ceil_div(args.d_inner, Layout<kLanes>::kChannels);
  const Problem p =
      make_problem(args, groups, chunk_length(args.batch * groups, args.seq_len, kEnoughWarps, kTargetWarps, 1));
  const Inputs<T> in = typed_inputs<T>(args);
  const int64_t channels = p.chunks > 1 ? p.batch * p.chunks * p.d_inner : 0;
  const Scratch<float> states(stream, channels * p.d_state), delta_sums(stream, channels);
  const Chunks chunks{states.get(), nullptr, delta_sums.get()};
  const unsigned blocks = blocks_for(p.works(), kWarps);
  if (p.chunks > 1) {
    selective_scan_summary_kernel<T, kLanes, false><<<blocks, kWarps * kWarp, 0, raw(stream)>>>(p, in, nullptr, chunks);
    PM_CHECK_LAUNCH("selective_scan_summary");
    carry(p, in.A, chunks, stream);
  }
  selective_scan_kernel<T, kLanes>
      <<<blocks, kWarps * kWarp, 0, raw(stream)>>>(p, in, chunks.states, static_cast<T*>(args.out));
  PM_CHECK_LAUNCH("selective_scan");
}

}  // namespace

void carry(const Problem& p, const float* A, const Chunks& chunks, Stream stream) {
  if (p.chunks <= 16) {
    launch_carry<1, 128>(p, A, chunks, stream);
  } else if (p.chunks <= 256) {
    launch_carry<16, 16>(p, A, chunks, stream);
  } else {
    launch_carry<128, 8>(p, A, chunks, stream);
  }
}

}  // namespace scan

void selective_scan(const SelectiveScanArgs& args, Stream stream) {
  const scan::LanePlan plan = scan::plan_lanes(args);
  dispatch_float(args.dtype, [&]<typename T>() {
    switch (plan.subs) {
      case 1:
        return scan::run_lanes<T, 1>(args, plan, stream);
      case 2:
        return scan::run_lanes<T, 2>(args, plan, stream);
      default:
        scan::dispatch_lanes(args.d_state, [&]<int kLanes>() { scan::run<T, kLanes>(args, stream); });
    }
  });
}

}  // namespace pm::cuda
