// The gated selective scan of one direction, backward. Layout of a warp and masks: selective_scan.cuh; maths and
// shapes: engine/ops/scan/selective_scan.h. Only the inputs were kept, so states are computed again.
//
// passes  : 1. summary: each chunk of kChunk tokens from zero, state and adjoint at once: one exp serves both
//           2. carry  : over the chunks, states forward and adjoints backward; gives what enters each chunk from both
//                       ends
//           3. grad   : a warp walks its chunk forward and keeps the state at each tile start in shared memory, then
//                       takes the tiles from last to first: decays and states of the 8 tokens in registers, then the
//                       adjoint
//           4. sums   : dB, dC over blocks of channels (when there are several); dA, dD_skip, ddelta_bias over chunks
//           With one chunk passes 1 and 2 are left out.
// launch  : pass 3: a block is up to 4 warps over neighbouring channel groups of one chunk, so that it can add up dB
//           and dC of its channels; one block takes `rounds` such sets one after the other. d_state 16, batch 1:
//           d_inner 6, seq_len 1,048,576: 16384 blocks of 1 warp; d_inner 768, seq_len 50: 24 blocks of 4 warps.
// traffic : float32, d_state 16, bytes per element of u: pass 1 reads 16, pass 3 reads 24 and writes 12, partials of dB
//           and dC 4 written and 4 read (none up to 32 channels). Three exponentials per state and token: 24 clocks of
//           a multiprocessor per 8 channels, e.g. 0.65 ms for d_inner 384, seq_len 131,072 at 132 multiprocessors, 1.76
//           GHz.
// scratch : floats per element of u: chunk summaries (2 * d_state + 1) / 64, parameter partials (d_state + 2) / 64, and
//           for more than one block of channels partials of dB and dC, at most 1 when large (see blocks_of): 1.8 in
//           all for d_state 16, beside the 4 of u, delta, z, dout.
// numerics: float32 for any storage; partials of parameters are summed in double
// deterministic: yes. Sums over a warp's channels by a fixed butterfly, over warps, blocks and chunks in index order
#include "cuda/scan/selective_scan.cuh"
#include "engine/ops/scan/selective_scan_plan.h"

namespace pm::cuda {
namespace scan {
namespace {

constexpr int kTiles = 8;  // of a chunk
constexpr int kChunk = kTiles * kSteps;
static_assert(kChunk == kGradChunk);

template <typename T>
struct GradOut {
  const T* dout;
  T *du, *ddelta, *dz, *dB, *dC;
  float* pair_partials;       // (channel blocks, 2, batch * seq_len, d_state), or null: write dB and dC
  float* parameter_partials;  // (batch * chunks, d_inner * d_state + 2 * d_inner): dA, then dD_skip, then ddelta_bias
};

template <int kLanes>
struct GradTile {
  using L = Layout<kLanes>;
  WarpTile<kLanes> tile;
  float4 starts[kTiles][kWarp];             // state before each tile; a lane reads only what it wrote
  float pairs[2][kSteps * 2 * L::kStates];  // dB and dC of a tile summed over the warp's channels, two tiles in turn
};

// What a lane holds of the tile in work.
template <int kLanes>
struct Items {
  using L = Layout<kLanes>;
  float u[L::kItems], raw[L::kItems], z[L::kItems], dout[L::kItems], B[L::kPairs], C[L::kPairs];
};

// Decays and states of a tile, and the running adjoint, for the four states of a lane.
struct LaneStates {
  float a2[kStatesPerLane];
  float decay[kSteps][kStatesPerLane];
  float state[kSteps + 1][kStatesPerLane];  // state[i]: before token i
  float adjoint[kStatesPerLane];            // decay times adjoint of the token after
  float dA[kStatesPerLane];
};

template <typename T, int kLanes>
__device__ __forceinline__ void load_tile(const Problem& p, const Inputs<T>& in, const T* __restrict__ dout,
                                          const Walk<kLanes>& walk, Items<kLanes>& items) {
  walk.load_items(in.u, items.u);
  walk.load_items(in.delta, items.raw);
  walk.load_items(in.z, items.z);
  walk.load_items(dout, items.dout);
  walk.load_pairs(p, in.B, items.B);
  walk.load_pairs(p, in.C, items.C);
}

// Loaded items to shared memory; upstream_z = dout * silu'(z), slope = derivative of softplus, for each item of the
// lane.
template <int kLanes>
__device__ __forceinline__ void stage_tile(const Walk<kLanes>& walk, const Items<kLanes>& items, float bias,
                                           WarpTile<kLanes>& tile, float (&upstream_z)[Layout<kLanes>::kItems],
                                           float (&slope)[Layout<kLanes>::kItems]) {
  __syncwarp();  // the lanes have read the tile before
#pragma unroll
  for (int j = 0; j < Layout<kLanes>::kItems; ++j) {
    const float z = items.z[j], gate = sigmoid(z), x = items.raw[j] + bias;
    upstream_z[j] = items.dout[j] * gate * fmaf(z, 1.0f - gate, 1.0f);
    slope[j] = x > 20.0f ? 1.0f : sigmoid(x);
    if (!tile.step_exists(walk)) continue;
    const float delta = walk.has(j) ? softplus(x) : 0.0f;
    tile.delta[tile.place(walk, j)] = make_float2(delta, delta * items.u[j]);
    tile.g[tile.place(walk, j)] = items.dout[j] * z * gate;
  }
  tile.put(tile.B, walk.lane, items.B);
  tile.put(tile.C, walk.lane, items.C);
  __syncwarp();
}

// Walks the chunk forward to its last tile and keeps the state at every tile start. Ends on the last tile.
template <typename T, int kLanes>
__device__ __forceinline__ void keep_tile_starts(const Problem& p, const Inputs<T>& in, Walk<kLanes>& walk, float bias,
                                                 const float (&a2)[kStatesPerLane], float (&state)[kStatesPerLane],
                                                 GradTile<kLanes>& shared, int tiles) {
  using L = Layout<kLanes>;
  WarpTile<kLanes>& tile = shared.tile;
  for (int i = 0;; ++i) {
    shared.starts[i][walk.lane] = make_float4(state[0], state[1], state[2], state[3]);
    if (i == tiles - 1) break;
    float u[L::kItems], raw[L::kItems], B[L::kPairs];
    walk.load_items(in.u, u);
    walk.load_items(in.delta, raw);
    walk.load_pairs(p, in.B, B);
    __syncwarp();  // the lanes have read the tile before
#pragma unroll
    for (int j = 0; j < L::kItems; ++j) {
      if (!tile.step_exists(walk)) continue;
      const float delta = walk.has(j) ? softplus(raw[j] + bias) : 0.0f;
      tile.delta[tile.place(walk, j)] = make_float2(delta, delta * u[j]);
    }
    tile.put(tile.B, walk.lane, B);
    __syncwarp();
    walk.advance(p, 1);
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      const float2 d = tile.delta[step * L::kChannels + walk.local];
      const float4 b = tile.four(tile.B, step, walk.sub);
#pragma unroll
      for (int k = 0; k < kStatesPerLane; ++k) {
        state[k] = fmaf(exp2_approx(d.x * a2[k]), state[k], d.y * component(b, k));
      }
    }
  }
}

// Forward through the staged tile: fills decays and states; y[step] becomes <C, s> over this lane's states.
template <int kLanes>
__device__ __forceinline__ void tile_forward(const WarpTile<kLanes>& tile, const Walk<kLanes>& walk, LaneStates& s,
                                             float (&y)[kSteps]) {
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    const float2 d = tile.delta[step * Layout<kLanes>::kChannels + walk.local];
    const float4 b = tile.four(tile.B, step, walk.sub), c = tile.four(tile.C, step, walk.sub);
    y[step] = 0.0f;
#pragma unroll
    for (int k = 0; k < kStatesPerLane; ++k) {
      s.decay[step][k] = exp2_approx(d.x * s.a2[k]);
      s.state[step + 1][k] = fmaf(s.decay[step][k], s.state[step][k], d.y * component(b, k));
      y[step] = fmaf(component(c, k), s.state[step + 1][k], y[step]);
    }
  }
}

// Backward through the tile. sum_decay[step] = sum of h * A * log2(e) * decay * state before, sum_B[step] = sum of h *
// B, over this lane's states; dB and dC, summed over the warp's channels, go to `pairs` (kSteps, 2, kStates).
template <int kLanes>
__device__ __forceinline__ void tile_backward(const WarpTile<kLanes>& tile, const Walk<kLanes>& walk, LaneStates& s,
                                              float (&sum_decay)[kSteps], float (&sum_B)[kSteps], float* pairs) {
  using L = Layout<kLanes>;
  constexpr int kSpread = L::kChannels < 8 ? L::kChannels : 8;
#pragma unroll
  for (int step = kSteps - 1; step >= 0; --step) {
    const float2 d = tile.delta[step * L::kChannels + walk.local];
    const float g = tile.g[step * L::kChannels + walk.local];
    const float4 b = tile.four(tile.B, step, walk.sub), c = tile.four(tile.C, step, walk.sub);
    float v[2 * kStatesPerLane];  // dB, then dC
    sum_decay[step] = 0.0f;
    sum_B[step] = 0.0f;
#pragma unroll
    for (int k = 0; k < kStatesPerLane; ++k) {
      const float h = fmaf(component(c, k), g, s.adjoint[k]);
      s.adjoint[k] = s.decay[step][k] * h;
      const float carried = s.adjoint[k] * s.state[step][k];
      sum_decay[step] = fmaf(carried, s.a2[k], sum_decay[step]);
      sum_B[step] = fmaf(h, component(b, k), sum_B[step]);
      s.dA[k] = fmaf(carried, d.x, s.dA[k]);
      v[k] = h * d.y;
      v[kStatesPerLane + k] = g * s.state[step + 1][k];
    }
    scatter_sum<L::kChannels, 1>(v, walk.local);
    if (walk.local < kSpread) {  // above 8 channels the others hold the same sums
#pragma unroll
      for (int j = 0; j < 8 / kSpread; ++j) {
        const int value = j * kSpread + walk.local, which = value / kStatesPerLane;
        pairs[(step * 2 + which) * L::kStates + walk.sub * kStatesPerLane + value % kStatesPerLane] = v[j * kSpread];
      }
    }
  }
}

// Adds up the warps of the block in order and writes, or in later rounds adds to, dB and dC of the tile. An element is
// always the same thread's. `stride`: floats between the `pairs` of two warps.
template <typename T, int kLanes>
__device__ __forceinline__ void sum_warps(const Problem& p, const GradOut<T>& out, const float* pairs, int stride,
                                          int warps, int64_t block, int64_t first_row, int row_step, int steps,
                                          bool add) {
  using L = Layout<kLanes>;
  const int64_t rows = p.batch * p.seq_len;
  const int threads = warps * kWarp;
  for (int e = threadIdx.x; e < kSteps * 2 * L::kStates; e += threads) {
    const int step = e / (2 * L::kStates), which = e / L::kStates % 2, state = e % L::kStates;
    if (step >= steps || state >= p.d_state) continue;
    float sum = pairs[e];
    for (int warp = 1; warp < warps; ++warp) sum += pairs[warp * stride + e];
    const int64_t row = first_row + row_step * step;
    if (out.pair_partials == nullptr) {
      (which == 0 ? out.dB : out.dC)[row * p.d_state + state] = from_float<T>(sum);
    } else {
      float* place = out.pair_partials + ((block * 2 + which) * rows + row) * p.d_state + state;
      *place = add ? *place + sum : sum;
    }
  }
}

// One row of parameter partials: dA from every lane, dD_skip and ddelta_bias summed over the lanes of a channel.
template <typename T, int kLanes>
__device__ __forceinline__ void store_parameters(const Problem& p, const GradOut<T>& out, const Walk<kLanes>& walk,
                                                 const float (&dA)[kStatesPerLane], float dD, float dbias) {
#pragma unroll
  for (int m = 1; m < kLanes; m *= 2) {
    dD += __shfl_xor_sync(0xffffffffu, dD, m * Layout<kLanes>::kChannels);
    dbias += __shfl_xor_sync(0xffffffffu, dbias, m * Layout<kLanes>::kChannels);
  }
  float* row = out.parameter_partials + walk.batch_chunk * p.d_inner * (p.d_state + 2);
  walk.store_states(p, row, dA);
  if (walk.live && walk.sub == 0) {
    row[p.d_inner * p.d_state + walk.channel] = dD;
    row[p.d_inner * (p.d_state + 1) + walk.channel] = dbias;
  }
}

template <typename T, int kLanes>
__global__ void __launch_bounds__(kWarps* kWarp)
    selective_scan_grad_kernel(Problem p, Blocks shape, Inputs<T> in, Chunks chunks, GradOut<T> out) {
  using L = Layout<kLanes>;
  extern __shared__ __align__(16) unsigned char memory[];
  GradTile<kLanes>* warp_tiles = reinterpret_cast<GradTile<kLanes>*>(memory);
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const unsigned blocks = static_cast<unsigned>(shape.blocks), batch_chunk = blockIdx.x / blocks;
  const int64_t block = blockIdx.x % blocks;
  GradTile<kLanes>& shared = warp_tiles[warp];
  WarpTile<kLanes>& tile = shared.tile;
  int turn = 0;  // which of the two `pairs` is in use, over all rounds
  for (int round = 0; round < shape.rounds; ++round) {
    // Warps beyond the last group stay: all they read is masked to zero, and the block waits for them.
    Walk<kLanes> walk(p, batch_chunk, (block * shape.rounds + round) * shape.warps + warp, lane);
    const int64_t chunk_channels = walk.batch_chunk * p.d_inner;
    const int tiles = static_cast<int>((walk.left + kSteps - 1) / kSteps);
    const int64_t batch = walk.batch_chunk / p.chunks, begin = walk.batch_chunk % p.chunks * p.chunk_len;
    int64_t tile_row = Walk<kLanes>::first_row(p, batch, begin) + walk.row_step * (tiles - 1) * kSteps;
    LaneStates s{};
    walk.load_states(p, in.A, s.a2);
#pragma unroll
    for (int k = 0; k < kStatesPerLane; ++k) s.a2[k] *= kLog2e;
    if (chunks.states != nullptr) {
      walk.load_states(p, chunks.states + chunk_channels * p.d_state, s.state[0]);
      walk.load_states(p, chunks.adjoints + chunk_channels * p.d_state, s.adjoint);
    }
    const float bias = walk.live ? in.delta_bias[walk.channel] : 0.0f, D = walk.live ? in.D_skip[walk.channel] : 0.0f;
    float dD = 0.0f, dbias = 0.0f;
    keep_tile_starts<T, kLanes>(p, in, walk, bias, s.a2, s.state[0], shared, tiles);

    Items<kLanes> items;
    load_tile<T, kLanes>(p, in, out.dout, walk, items);
    for (int i = tiles - 1; i >= 0; --i, turn ^= 1) {
      float upstream_z[L::kItems], slope[L::kItems], y[kSteps], sum_decay[kSteps], sum_B[kSteps];
      stage_tile<kLanes>(walk, items, bias, tile, upstream_z, slope);
      const float4 start = shared.starts[i][lane];
      s.state[0][0] = start.x, s.state[0][1] = start.y, s.state[0][2] = start.z, s.state[0][3] = start.w;
      tile_forward<kLanes>(tile, walk, s, y);
      scatter_sum<kLanes, L::kChannels>(y, walk.sub);  // leaves each lane the steps it loaded
      tile_backward<kLanes>(tile, walk, s, sum_decay, sum_B, shared.pairs[turn]);
      scatter_sum<kLanes, L::kChannels>(sum_decay, walk.sub);
      scatter_sum<kLanes, L::kChannels>(sum_B, walk.sub);
#pragma unroll
      for (int j = 0; j < L::kItems; ++j) {
        if (!walk.has(j)) continue;
        const int at = j * kLanes % kSteps, place = tile.place(walk, j);
        const float delta = tile.delta[place].x, g = tile.g[place], u = items.u[j];
        const float ddelta = slope[j] * fmaf(kLn2, sum_decay[at], u * sum_B[at]);
        out.dz[walk.element(j)] = from_float<T>(upstream_z[j] * fmaf(D, u, y[at]));
        out.du[walk.element(j)] = from_float<T>(fmaf(D, g, delta * sum_B[at]));
        out.ddelta[walk.element(j)] = from_float<T>(ddelta);
        dD = fmaf(g, u, dD);
        dbias += ddelta;
      }
      const int steps = walk.steps;
      walk.advance(p, -1);
      if (i > 0) load_tile<T, kLanes>(p, in, out.dout, walk, items);
      __syncthreads();  // every warp's pairs of this turn are written; those of the other turn have been read
      sum_warps<T, kLanes>(p, out, warp_tiles[0].pairs[turn], sizeof(GradTile<kLanes>) / sizeof(float), shape.warps,
                           block, tile_row, static_cast<int>(walk.row_step), steps, round > 0);
      tile_row -= walk.row_step * kSteps;
    }
    store_parameters<T, kLanes>(p, out, walk, s.dA, dD, dbias);
  }
}

// dB and dC: blocks of channels in order. partials: (channel blocks, 2, count).
template <typename T>
__global__ void __launch_bounds__(kBlock) sum_pairs_kernel(const float* __restrict__ partials, int64_t blocks,
                                                           int64_t count, T* __restrict__ dB, T* __restrict__ dC) {
  const int64_t which = blockIdx.y;
  const int64_t step = int64_t{gridDim.x} * kBlock;
  for (int64_t i = int64_t{blockIdx.x} * kBlock + threadIdx.x; i < count; i += step) {
    float sum = 0.0f;
#pragma unroll 4
    for (int64_t block = 0; block < blocks; ++block) sum += partials[(block * 2 + which) * count + i];
    (which == 0 ? dB : dC)[i] = from_float<T>(sum);
  }
}

// ---------------------------------------------------------------- host side
template <typename T, int kLanes>
void launch_grad(const Problem& p, const Blocks& shape, const Inputs<T>& in, const Chunks& chunks,
                 const GradOut<T>& out, Stream stream) {
  const unsigned blocks = blocks_for(p.batch * p.chunks * shape.blocks, 1);
  const int threads = shape.warps * kWarp;
  static_assert((kLanes == 16 ? 2 : kWarps) * sizeof(GradTile<kLanes>) <= 48 * 1024);
  const size_t shared = static_cast<size_t>(shape.warps) * sizeof(GradTile<kLanes>);
  selective_scan_grad_kernel<T, kLanes><<<blocks, threads, shared, raw(stream)>>>(p, shape, in, chunks, out);
  PM_CHECK_LAUNCH("selective_scan_grad");
  if (out.pair_partials == nullptr) return;
  const int64_t count = p.batch * p.seq_len * p.d_state;
  sum_pairs_kernel<T>
      <<<dim3(grid_for(count), 2), kBlock, 0, raw(stream)>>>(out.pair_partials, shape.blocks, count, out.dB, out.dC);
  PM_CHECK_LAUNCH("selective_scan_grad sum_pairs");
}

template <typename T, int kLanes>
void run_grad(const SelectiveScanGradArgs& args, Stream stream) {
  const SelectiveScanArgs& a = args.forward;
  const int64_t groups = ceil_div(a.d_inner, Layout<kLanes>::kChannels);
  const Problem p = make_problem(a, groups, kChunk);
  const Inputs<T> in = typed_inputs<T>(a);
  const Blocks shape = blocks_of(a);
  const int64_t rows = p.batch * p.chunks, columns = p.d_inner * (p.d_state + 2);
  const int64_t channels = p.chunks > 1 ? rows * p.d_inner : 0;
  const Scratch<float> states(stream, channels * p.d_state), adjoints(stream, channels * p.d_state),
      delta_sums(stream, channels);
  const Scratch<float> pair_partials(stream, shape.direct() ? 0 : shape.blocks * 2 * p.batch * p.seq_len * p.d_state);
  const Scratch<float> parameter_partials(stream, rows * columns), parameters(stream, columns);
  const Chunks chunks{states.get(), adjoints.get(), delta_sums.get()};
  const GradOut<T> out{static_cast<const T*>(args.dout),
                       static_cast<T*>(args.du),
                       static_cast<T*>(args.ddelta),
                       static_cast<T*>(args.dz),
                       static_cast<T*>(args.dB),
                       static_cast<T*>(args.dC),
                       pair_partials.get(),
                       parameter_partials.get()};
  if (p.chunks > 1) {
    selective_scan_summary_kernel<T, kLanes, true>
        <<<blocks_for(p.works(), kWarps), kWarps * kWarp, 0, raw(stream)>>>(p, in, out.dout, chunks);
    PM_CHECK_LAUNCH("selective_scan_grad summary");
    carry(p, in.A, chunks, stream);
  }
  launch_grad<T, kLanes>(p, shape, in, chunks, out, stream);
  column_sum(parameter_partials.get(), rows, columns, parameters.get(), stream);
  copy_floats(args.dA, parameters.get(), p.d_inner * p.d_state, stream);
  copy_floats(args.dD_skip, parameters.get() + p.d_inner * p.d_state, p.d_inner, stream);
  copy_floats(args.ddelta_bias, parameters.get() + p.d_inner * (p.d_state + 1), p.d_inner, stream);
}

}  // namespace
}  // namespace scan

void selective_scan_grad(const SelectiveScanGradArgs& args, Stream stream) {
  dispatch_float(args.forward.dtype, [&]<typename T>() {
    scan::dispatch_lanes(args.forward.d_state, [&]<int kLanes>() { scan::run_grad<T, kLanes>(args, stream); });
  });
}

}  // namespace pm::cuda
