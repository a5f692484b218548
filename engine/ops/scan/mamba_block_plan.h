// How the CUDA kernels of mamba_block cut a call into segments and chunks, and the scratch memory that follows from it. Sizes
// alone, so that memory can be predicted where there is no GPU: cuda/scan/mamba_block.cu and mamba_block_grad.cu cut by these
// functions, and a test on the GPU holds what they allocate against the sums at the end.
#pragma once
#include <algorithm>
#include <vector>

#include "engine/ops/scan/mamba_block.h"

namespace pm::cuda {

// Whether the kernels cover a shape; others are composed of the smaller operators (layers/nn/mamba_block.cpp).
inline bool mamba_block_covers(const MambaBlockArgs& args) {
  return args.d_state == 16 && args.d_conv == 4 && args.dt_rank <= 48;
}

namespace block {

constexpr int64_t kMaxWidth = 96, kMaxChunks = 16;  // threads of a direction; chunks side by side
constexpr int64_t kEnoughBlocks = 120;              // of one chunk per sequence
constexpr int64_t kTargetBlocks = 132 * 3 * 8;
constexpr int64_t kMinChunk = 64, kMaxChunk = 1 << 20;
constexpr int kGradChunk = 64;             // tokens of a chunk of the gradient, at most; a multiple of 4
constexpr int64_t kNarrowRank = 4;         // dt_rank of a layer that one kernel prepares, at most
constexpr int64_t kHaloTokens = 3;         // d_conv - 1
constexpr int64_t kMinSegmentRows = 4096;  // whatever args.scratch_bytes says
constexpr int64_t kScanParameters = 18;    // sums of a channel: dA (16), dD, dbias
constexpr int64_t kBCColumns = 32;         // columns of B and C in a projected row
// Values of (rows, d_inner) of a segment, but for the rest of a chunk: indices have 32 bits.
constexpr int64_t kMaxSegmentValues = int64_t{1} << 31;

constexpr int64_t pieces(int64_t whole, int64_t piece) { return (whole + piece - 1) / piece; }
constexpr int64_t round_up(int64_t value, int64_t unit) { return pieces(value, unit) * unit; }

// Columns of a projected row: B, C, dt, zeros up to a multiple of 4.
inline int64_t proj_width_of(const MambaBlockArgs& args) { return kBCColumns + round_up(args.dt_rank, 4); }

// Layers of few channels, which one kernel takes from tokens to what the scans read (block_prepare.cu).
inline bool narrow(const MambaBlockArgs& args) {
  const int64_t c = args.channels;
  return (c == 3 || c == 6 || c == 12 || c == 24) && args.d_inner == 2 * c && args.d_state == 16 && args.d_conv == 4 &&
         args.dt_rank <= kNarrowRank;
}

// How the channels of a chunk lie in blocks of the scans (block.cuh).
struct Lanes {
  int64_t groups, width, subs;  // blocks that share a chunk, channels of each, chunks that share a block
};
inline Lanes lanes_of(const MambaBlockArgs& args, bool for_gradient) {
  const int64_t d_inner = args.d_inner, groups = pieces(d_inner, kMaxWidth), width = pieces(d_inner, groups);
  // Chunks share a block of the gradient where each is 2, 4 or 8 lanes of three channels or 24 of two (block_grad.cuh).
  const bool whole_lanes = d_inner == 6 || d_inner == 12 || d_inner == 24 || d_inner == 48;
  return {groups, width, for_gradient && !whole_lanes ? 1 : std::min(kMaxWidth / width, kMaxChunks)};
}

// ---------------------------------------------------------------- segments
// A run of rows that is worked on at once, so that the intermediate values of a whole slide never exist together: some whole
// sequences, or some tokens of one sequence. A part of a sequence carries kHaloTokens more at each inner end, because the
// convolutions look that far.
struct Segment {
  int64_t first_sequence, sequences, first_token, tokens;  // without the halo
  int64_t lead, trail;                                     // halo tokens before and behind
  int64_t rows() const { return sequences * tokens; }
  int64_t all_rows() const { return sequences * (lead + tokens + trail); }
};

// How a call is cut, by its passes alike.
struct Plan {
  int64_t chunk_len;          // tokens
  int64_t chunks;             // of each sequence
  int64_t sequences, tokens;  // of a segment, at most, without the halo
  int64_t rows;               // of a segment, at most, with it
  int64_t segments;
};

// Segments of at most max_rows rows; parts of a sequence begin at multiples of a chunk.
inline Plan plan_of(const MambaBlockArgs& args, int64_t max_rows, int64_t chunk_len) {
  const int64_t seq_len = args.seq_len;
  Plan plan{chunk_len, pieces(seq_len, chunk_len), 1, seq_len, 0, 0};
  if (seq_len <= max_rows) {
    plan.sequences = pieces(args.batch, pieces(args.batch, max_rows / seq_len));
    plan.rows = plan.sequences * seq_len;
    plan.segments = pieces(args.batch, plan.sequences);
    return plan;
  }
  plan.tokens = round_up(pieces(seq_len, pieces(seq_len, max_rows)), chunk_len);
  const int64_t parts = pieces(seq_len, plan.tokens);
  if (parts == 1) plan.tokens = seq_len;
  const int64_t lead = parts > 2 ? kHaloTokens : 0;  // the longest is the second where there are three, else the first
  const int64_t behind = seq_len - (parts > 2 ? 2 : 1) * plan.tokens;
  plan.rows = lead + plan.tokens + std::clamp<int64_t>(behind, 0, kHaloTokens);
  plan.segments = args.batch * parts;
  return plan;
}

inline std::vector<Segment> cut(const MambaBlockArgs& args, const Plan& plan) {
  std::vector<Segment> segments;
  if (plan.tokens == args.seq_len) {
    for (int64_t first = 0; first < args.batch; first += plan.sequences) {
      segments.push_back({first, std::min(plan.sequences, args.batch - first), 0, args.seq_len, 0, 0});
    }
    return segments;
  }
  for (int64_t sequence = 0; sequence < args.batch; ++sequence) {
    for (int64_t first = 0; first < args.seq_len; first += plan.tokens) {
      const int64_t tokens = std::min(plan.tokens, args.seq_len - first), behind = args.seq_len - first - tokens;
      segments.push_back({sequence, 1, first, tokens, std::min(kHaloTokens, first), std::min(kHaloTokens, behind)});
    }
  }
  return segments;
}

// Chunks of the forward pass: one per sequence where the sequences alone fill the GPU, else a multiple of 8 tokens.
inline Plan forward_plan(const MambaBlockArgs& args) {
  const Lanes lanes = lanes_of(args, false);
  const int64_t whole = round_up(args.seq_len, 8);
  int64_t chunk_len = std::min(whole, kMaxChunk);
  if (pieces(args.batch, lanes.subs) * lanes.groups < kEnoughBlocks && whole > kMinChunk) {
    const int64_t wanted = std::max<int64_t>(1, kTargetBlocks / lanes.groups) * lanes.subs;  // chunks of the batch
    chunk_len = std::clamp(round_up(pieces(args.batch * args.seq_len, wanted), 8), kMinChunk, chunk_len);
  }
  const int64_t row_values = args.channels + 7 * args.d_inner + 2 * proj_width_of(args);
  const int64_t row_bytes = row_values * static_cast<int64_t>(size_of(args.dtype));
  const int64_t most_rows = std::min(args.scratch_bytes / row_bytes, kMaxSegmentValues / args.d_inner);
  return plan_of(args, std::max(most_rows, kMinSegmentRows), chunk_len);
}

// Chunks of the gradient: sequences a little longer than some whole chunks get equal ones instead of an almost empty last one.
inline Plan gradient_plan(const MambaBlockArgs& args) {
  const int64_t chunk_len = round_up(pieces(args.seq_len, pieces(args.seq_len, kGradChunk)), 4);
  const int64_t projected = (narrow(args) ? 2 : 4) * proj_width_of(args);
  const int64_t wide = (16 * args.d_inner + args.channels + projected) * static_cast<int64_t>(size_of(args.dtype));
  const int64_t pairs =
      2 * pieces(args.d_inner, kMaxWidth) * kBCColumns * 4 + 2 * args.d_inner * kScanParameters * 4 / kGradChunk;
  return plan_of(args, std::max(args.scratch_bytes / (wide + pairs), kMinSegmentRows), chunk_len);
}

// ---------------------------------------------------------------- memory, in the order in which it is allocated
// Matrices as the kernels read them: x_proj in float32, and all in bfloat16 beside it, each from a multiple of 256 bytes on.
inline int64_t padded_matrix(int64_t elements) { return round_up(elements, 128); }
inline int64_t rounded_matrices(const MambaBlockArgs& args) {
  if (args.dtype == DType::f32) return 0;
  return padded_matrix(2 * args.d_inner * args.channels) + padded_matrix(args.channels * args.d_inner) +
         2 * padded_matrix(proj_width_of(args) * args.d_inner) + 2 * padded_matrix(args.d_inner * args.dt_rank);
}
inline int64_t matrix_bytes(const MambaBlockArgs& args) {
  return 2 * proj_width_of(args) * args.d_inner * 4 + rounded_matrices(args) * 2;
}

// Values of a row that the scans read, and hn and x where the gradient or the general way needs them.
inline int64_t prepared_values(const MambaBlockArgs& args, bool for_gradient) {
  const bool inputs = for_gradient || !narrow(args);
  return (inputs ? args.channels + args.d_inner : 0) + 5 * args.d_inner + 2 * proj_width_of(args);
}

// States (and adjoints) of all chunks of both directions, and their sums of delta.
inline int64_t chunk_bytes(const MambaBlockArgs& args, const Plan& plan, bool with_adjoints) {
  if (plan.chunks == 1) return 0;
  return 2 * args.batch * plan.chunks * args.d_inner * (with_adjoints ? 33 : 17) * 4;
}

// About the same for a gradient of so many tokens, d_state 16: states, adjoints and the sum of delta of each chunk.
inline int64_t carried_bytes(int64_t tokens, int64_t d_inner) {
  return 2 * pieces(tokens, kGradChunk) * d_inner * 33 * 4;
}

// Floats of all parameters of a block.
inline int64_t parameter_floats(const MambaBlockArgs& args) {
  const int64_t projections = args.dt_rank + 2 * args.d_state + args.dt_rank;  // x_proj, dt_proj
  return args.channels + 3 * args.d_inner * args.channels +
         2 * args.d_inner * (args.d_conv + 1 + projections + 1 + args.d_state + 1);
}

// Most scratch memory of a call. Left out are sums on their way to the gradient of a weight, 10 MB at most.
inline int64_t forward_scratch(const MambaBlockArgs& args) {
  const Plan plan = forward_plan(args);
  const int64_t row_values = prepared_values(args, false) + args.d_inner;  // y
  return matrix_bytes(args) + plan.rows * row_values * static_cast<int64_t>(size_of(args.dtype)) +
         chunk_bytes(args, plan, false);
}
inline int64_t gradient_scratch(const MambaBlockArgs& args) {
  const Plan plan = gradient_plan(args);
  const Lanes lanes = lanes_of(args, true);
  // dy, y, dz, then du, ddelta and du_proj of both directions; dproj, dt and ddt of one
  const int64_t general = narrow(args) ? 0 : proj_width_of(args) + 2 * args.dt_rank;
  const int64_t row_values = prepared_values(args, true) + 9 * args.d_inner + general;
  const int64_t pairs = 2 * lanes.groups * plan.sequences * plan.tokens * kBCColumns;
  const int64_t partials = pieces(plan.sequences * pieces(plan.tokens, plan.chunk_len), lanes.subs);
  const int64_t sums = plan.segments == 1 ? 0 : 2 * parameter_floats(args);  // of weights, over the segments
  return matrix_bytes(args) + plan.rows * row_values * static_cast<int64_t>(size_of(args.dtype)) +
         chunk_bytes(args, plan, true) + (pairs + partials * 2 * args.d_inner * kScanParameters + sums) * 4;
}

}  // namespace block
}  // namespace pm::cuda
