// The fused Mamba block on CUDA: passes of its forward direction and what both directions share. The kernels:
//
//   block_prepare.cu                  narrow layers (3 to 24 channels): from tokens to what the scans read, all at once
//   norm, in_proj, out_proj, x_proj   cuda/norm, cuda/gemm (cuBLAS; small kernels below 48 features)
//   block_conv.cu                     both convolutions and SiLU
//   block_weights.cu                  matrices in the order and type that the others read
//   block_project.cu                  delta = softplus(dt_proj)
//   block_scan.cu, block_carry.cu     both scans at once, gate
//   block_summary_grad.cu, block_grad.cu   their gradients
//   block_project_grad.cu             narrow layers: back through dt_proj and x_proj, all at once
//
// passes  : 1. prepare each segment (tokens to u, delta, B, C) and summarise its chunks    only with several chunks
//           2. carry over the chunks
//           3. prepare each segment again, finish the scans, out_proj, residual            one segment: prepared once
//           Between the passes only the chunk states live: 33 floats per channel, direction and chunk.
// chunks  : one per sequence where the sequences alone fill the GPU (a batch of images in the wide layers), else about
//           kTargetBlocks blocks in all, at least 64 tokens long. A function of the shape alone: the same sums on every GPU.
// memory  : (7.5 * d_inner + 2 * proj_width) values a row of a segment
#include <algorithm>

#include "cuda/scan/mamba_block.cuh"
#include "engine/ops/gemm/linear.h"
#include "engine/ops/norm/rms_norm.h"

namespace pm::cuda {
namespace block {

constexpr int kMaxWidth = 96, kMaxChunks = 16;  // threads of a direction; chunks side by side
constexpr int64_t kEnoughBlocks = 120;          // of one chunk per sequence
constexpr int64_t kTargetBlocks = 132 * 3 * 8;
constexpr int64_t kMinChunk = 64, kMaxChunk = 1 << 20;

int proj_width_of(const MambaBlockArgs& args) { return static_cast<int>(32 + ceil_div(args.dt_rank, 4) * 4); }

Sequences sequences_of(const MambaBlockArgs& args, int64_t sequences, int64_t tokens, int chunk_len,
                       bool for_gradient) {
  const int d_inner = static_cast<int>(args.d_inner);
  Sequences s;
  s.batch = sequences;
  s.seq_len = tokens;
  s.chunk_len = chunk_len;
  s.chunks = ceil_div(tokens, chunk_len);
  s.d_inner = d_inner;
  s.groups = static_cast<int>(ceil_div(d_inner, kMaxWidth));
  s.width = static_cast<int>(ceil_div(d_inner, s.groups));
  s.subs = std::min(kMaxWidth / s.width, kMaxChunks);
  // Lanes of the gradient own three channels each, and 2, 4 or a multiple of 8 of them a chunk.
  const bool whole_lanes = d_inner == 6 || d_inner == 12 || d_inner == 24 || d_inner == 48;
  if (for_gradient && !whole_lanes) s.subs = 1;
  s.proj_width = proj_width_of(args);
  return s;
}

std::vector<Segment> cut(const MambaBlockArgs& args, int64_t max_rows, int64_t unit) {
  std::vector<Segment> segments;
  if (args.seq_len <= max_rows) {
    const int64_t most = max_rows / args.seq_len, parts = ceil_div(args.batch, most),
                  share = ceil_div(args.batch, parts);
    for (int64_t first = 0; first < args.batch; first += share) {
      segments.push_back({first, std::min(share, args.batch - first), 0, args.seq_len, 0, 0});
    }
    return segments;
  }
  const int64_t parts = ceil_div(args.seq_len, max_rows), share = ceil_div(ceil_div(args.seq_len, parts), unit) * unit;
  for (int64_t sequence = 0; sequence < args.batch; ++sequence) {
    for (int64_t first = 0; first < args.seq_len; first += share) {
      const int64_t tokens = std::min(share, args.seq_len - first), behind = args.seq_len - first - tokens;
      segments.push_back({sequence, 1, first, tokens, std::min(kHalo, first), std::min(kHalo, behind)});
    }
  }
  return segments;
}

Prepared::Prepared(const MambaBlockArgs& args, int64_t max_rows, bool for_gradient, Stream stream)
    : hn(stream, for_gradient || !narrow(args) ? max_rows * args.channels : 0, size_of(args.dtype)),
      x(stream, for_gradient || !narrow(args) ? max_rows * args.d_inner : 0, size_of(args.dtype)),
      z(stream, max_rows * args.d_inner, size_of(args.dtype)),
      u{{stream, max_rows * args.d_inner, size_of(args.dtype)}, {stream, max_rows * args.d_inner, size_of(args.dtype)}},
      delta{{stream, max_rows * args.d_inner, size_of(args.dtype)},
            {stream, max_rows * args.d_inner, size_of(args.dtype)}},
      proj{{stream, max_rows * proj_width_of(args), size_of(args.dtype)},
           {stream, max_rows * proj_width_of(args), size_of(args.dtype)}} {}

void Prepared::run(const MambaBlockArgs& args, const Segment& segment, const Weights& weights, Wanted wanted,
                   Stream stream) {
  const int64_t first_row = segment.first_sequence * args.seq_len + segment.first_token - segment.lead;
  const void* tokens = offset(args.tokens, first_row * args.channels, args.dtype);
  const Sequences s =
      sequences_of(args, segment.sequences, segment.lead + segment.tokens + segment.trail, kMinChunk, false);
  const Projected all[2] = {{u[0].get(), delta[0].get(), proj[0].get()}, {u[1].get(), delta[1].get(), proj[1].get()}};
  if (!narrow(args)) return run_general(args, s, tokens, weights, wanted.z, all, stream);
  const PreparedInputs inputs{wanted.inputs ? hn.get() : nullptr, wanted.inputs ? x.get() : nullptr,
                              wanted.z ? z.get() : nullptr};
  prepare_narrow(s, args, tokens, {weights.x_proj_values(0), weights.x_proj_values(1)}, inputs, all, stream);
}

void Prepared::run_general(const MambaBlockArgs& args, const Sequences& s, const void* tokens, const Weights& weights,
                           bool with_z, const Projected (&all)[2], Stream stream) {
  const int64_t rows = s.rows(), d_inner = args.d_inner, width = s.proj_width;
  rms_norm({tokens, args.norm, hn.get(), rows, args.channels, args.norm_eps, args.dtype}, stream);
  LinearArgs in_proj{hn.get(), weights.in_proj.weight, nullptr, {{x.get(), d_inner}},
                     rows,     args.channels,          d_inner, args.dtype,
                     false,    weights.in_proj.stored};
  if (with_z) {
    in_proj.groups.push_back({z.get(), d_inner});
    in_proj.out_features += d_inner;
  }
  linear(in_proj, stream);
  convolve(s, args, x.get(), all, stream);
  for (int p = 0; p < 2; ++p) {
    const Matrix& x_proj = weights.x_proj[p];
    linear({u[p].get(),
            x_proj.weight,
            nullptr,
            {{proj[p].get(), width}},
            rows,
            d_inner,
            width,
            args.dtype,
            false,
            x_proj.stored},
           stream);
  }
  step_sizes(s, args, all, stream);
}

void Prepared::core(const MambaBlockArgs& args, const Segment& segment, Projected (&rows)[2]) const {
  for (int p = 0; p < 2; ++p) {
    rows[p] = {u[p].at(segment.lead * args.d_inner), delta[p].at(segment.lead * args.d_inner),
               proj[p].at(segment.lead * proj_width_of(args))};
  }
}

ChunkArrays::ChunkArrays(const MambaBlockArgs& args, int64_t pairs, bool with_adjoints, Stream stream)
    : pairs_(pairs),
      states_(stream, 2 * pairs * args.d_inner * 16),
      adjoints_(stream, with_adjoints ? 2 * pairs * args.d_inner * 16 : 0),
      delta_sums_(stream, 2 * pairs * args.d_inner) {}

Chunks ChunkArrays::chunks() const { return {states_.get(), adjoints_.get(), delta_sums_.get(), pairs_}; }

namespace {

// Tokens of a chunk of the forward pass, a multiple of 8.
int chunk_length(const MambaBlockArgs& args) {
  const Sequences s = sequences_of(args, args.batch, args.seq_len, 8, false);
  const int64_t whole = ceil_div(args.seq_len, 8) * 8;
  if (ceil_div(args.batch, s.subs) * s.groups >= kEnoughBlocks || whole <= kMinChunk) {
    return static_cast<int>(std::min(whole, kMaxChunk));
  }
  const int64_t wanted = std::max<int64_t>(1, kTargetBlocks / s.groups) * s.subs;  // chunks of the batch
  const int64_t share = ceil_div(ceil_div(args.batch * args.seq_len, wanted), 8) * 8;
  return static_cast<int>(std::clamp(share, kMinChunk, std::min(whole, kMaxChunk)));
}

int64_t most_rows(const MambaBlockArgs& args) {
  const int64_t values = args.channels + 7 * args.d_inner + 2 * proj_width_of(args);
  return std::max(args.scratch_bytes / (values * static_cast<int64_t>(size_of(args.dtype))), kMinSegmentRows);
}

struct Forward {
  const MambaBlockArgs& args;
  Stream stream;
  int chunk_len;
  std::vector<Segment> segments;
  int64_t chunks;  // of each sequence
  Weights weights;
  Prepared prepared;
  Buffer y;

  Forward(const MambaBlockArgs& a, Stream s)
      : args(a),
        stream(s),
        chunk_len(chunk_length(a)),
        segments(cut(a, most_rows(a), chunk_len)),
        chunks(ceil_div(a.seq_len, chunk_len)),
        weights(a, s),
        prepared(a, most(), false, s),
        y(s, most() * a.d_inner, size_of(a.dtype)) {}

  int64_t most() const {
    int64_t rows = 0;
    for (const Segment& segment : segments) rows = std::max(rows, segment.all_rows());
    return rows;
  }
  Sequences sequences(const Segment& segment) const {
    return sequences_of(args, segment.sequences, segment.tokens, chunk_len, false);
  }
  int64_t first_pair(const Segment& segment) const {
    return segment.first_sequence * chunks + segment.first_token / chunk_len;
  }
  void summarise_segment(const Segment& segment, const Chunks& summaries) {
    Projected rows[2];
    prepared.core(args, segment, rows);
    summarise(sequences(segment), args, rows, summaries, first_pair(segment), stream);
  }
  void finish_segment(const Segment& segment, const Chunks& entering) {
    Projected rows[2];
    prepared.core(args, segment, rows);
    const void* z = prepared.z.at(segment.lead * args.d_inner);
    finish(sequences(segment), args, rows, entering, first_pair(segment), z, y.get(), stream);
    const int64_t at = (segment.first_sequence * args.seq_len + segment.first_token) * args.channels,
                  count = segment.rows();
    void* out = offset(args.out, at, args.dtype);
    PM_CUDA_CHECK(cudaMemcpyAsync(out, offset(args.tokens, at, args.dtype),
                                  static_cast<size_t>(count * args.channels) * size_of(args.dtype),
                                  cudaMemcpyDeviceToDevice, raw(stream)));
    linear({y.get(),
            weights.out_proj.weight,
            nullptr,
            {{out, args.channels}},
            count,
            args.d_inner,
            args.channels,
            args.dtype,
            true,
            weights.out_proj.stored},
           stream);
  }
  void run() {
    if (chunks == 1) {
      for (const Segment& segment : segments) {
        prepared.run(args, segment, weights, {true, false}, stream);
        finish_segment(segment, {});
      }
      return;
    }
    const ChunkArrays arrays(args, args.batch * chunks, false, stream);
    const bool once = segments.size() == 1;
    for (const Segment& segment : segments) {
      prepared.run(args, segment, weights, {once, false}, stream);
      summarise_segment(segment, arrays.chunks());
    }
    carry(args, args.batch, chunks, arrays.chunks(), stream);
    for (const Segment& segment : segments) {
      if (!once) prepared.run(args, segment, weights, {true, false}, stream);
      finish_segment(segment, arrays.chunks());
    }
  }
};

}  // namespace
}  // namespace block

bool mamba_block_covers(const MambaBlockArgs& args) {
  return args.d_state == 16 && args.d_conv == 4 && args.dt_rank <= 48;
}

void mamba_block(const MambaBlockArgs& args, Stream stream) { block::Forward(args, stream).run(); }

}  // namespace pm::cuda
