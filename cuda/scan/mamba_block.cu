// The fused Mamba block on CUDA: passes of its forward direction and what both directions share. The kernels:
//
//   block_prepare.cu                  narrow layers (3 to 24 channels): from tokens to what the scans read, all at once
//   norm, in_proj, out_proj, x_proj   cuda/norm, cuda/gemm (cuBLAS; small kernels below 48 features)
//   block_conv.cu                     both convolutions and SiLU
//   block_weights.cu                  matrices in the order and type that the others read
//   block_project.cu                  delta = softplus(dt_proj)
//   block_scan.cu, block_finish.cu, block_carry.cu   both scans at once, gate
//   block_summary_grad.cu, block_grad.cu   their gradients
//   block_project_grad.cu             narrow layers: back through dt_proj and x_proj, all at once
//
// passes  : 1. prepare each segment (tokens to u, delta, B, C) and summarise its chunks    only with several chunks
//           2. carry over the chunks
//           3. prepare each segment again, finish the scans, out_proj, residual            one segment: prepared once
//           Between the passes only the chunk states live: 33 floats per channel, direction and chunk.
// chunks  : one per sequence where the sequences alone fill the GPU (a batch of images in the wide layers), else about
//           kTargetBlocks blocks in all, at least 64 tokens long. A function of the shape alone: the same sums on every GPU.
// memory  : (7.5 * d_inner + 2 * proj_width) values a row of a segment; how calls are cut: engine/ops/scan/mamba_block_plan.h
#include "cuda/scan/mamba_block.cuh"
#include "engine/ops/gemm/linear.h"
#include "engine/ops/norm/rms_norm.h"

namespace pm::cuda {
namespace block {

Sequences sequences_of(const MambaBlockArgs& args, int64_t sequences, int64_t tokens, int64_t chunk_len,
                       bool for_gradient) {
  const Lanes lanes = lanes_of(args, for_gradient);
  Sequences s;
  s.batch = sequences;
  s.seq_len = tokens;
  s.chunk_len = static_cast<int>(chunk_len);
  s.chunks = ceil_div(tokens, chunk_len);
  s.d_inner = static_cast<int>(args.d_inner);
  s.groups = static_cast<int>(lanes.groups);
  s.width = static_cast<int>(lanes.width);
  s.subs = static_cast<int>(lanes.subs);
  s.proj_width = static_cast<int>(proj_width_of(args));
  return s;
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
  LinearArgs in_proj{hn.get(),   weights.in_proj.weight, nullptr, {{x.get(), d_inner}}, rows, args.channels, d_inner,
                     args.dtype, weights.in_proj.stored};
  if (with_z) {
    in_proj.groups.push_back({z.get(), d_inner});
    in_proj.out_features += d_inner;
  }
  linear(in_proj, stream);
  convolve(s, args, x.get(), all, stream);
  for (int p = 0; p < 2; ++p) {
    const Matrix& x_proj = weights.x_proj[p];
    linear(
        {u[p].get(), x_proj.weight, nullptr, {{proj[p].get(), width}}, rows, d_inner, width, args.dtype, x_proj.stored},
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

ChunkArrays::ChunkArrays(const MambaBlockArgs& args, const Plan& plan, bool with_adjoints, Stream stream)
    : pairs_(plan.chunks > 1 ? args.batch * plan.chunks : 0),
      states_(stream, 2 * pairs_ * args.d_inner * 16),
      adjoints_(stream, with_adjoints ? 2 * pairs_ * args.d_inner * 16 : 0),
      delta_sums_(stream, 2 * pairs_ * args.d_inner) {}

Chunks ChunkArrays::chunks() const { return {states_.get(), adjoints_.get(), delta_sums_.get(), pairs_}; }

namespace {

struct Forward {
  const MambaBlockArgs& args;
  Stream stream;
  Plan plan;
  std::vector<Segment> segments;
  Weights weights;
  Prepared prepared;
  Buffer y;

  Forward(const MambaBlockArgs& a, Stream s)
      : args(a),
        stream(s),
        plan(forward_plan(a)),
        segments(cut(a, plan)),
        weights(a, s),
        prepared(a, plan.rows, false, s),
        y(s, plan.rows * a.d_inner, size_of(a.dtype)) {}

  Sequences sequences(const Segment& segment) const {
    return sequences_of(args, segment.sequences, segment.tokens, plan.chunk_len, false);
  }
  int64_t first_pair(const Segment& segment) const {
    return segment.first_sequence * plan.chunks + segment.first_token / plan.chunk_len;
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
    linear({y.get(),
            weights.out_proj.weight,
            nullptr,
            {{offset(args.out, at, args.dtype), args.channels, offset(args.tokens, at, args.dtype)}},
            count,
            args.d_inner,
            args.channels,
            args.dtype,
            weights.out_proj.stored},
           stream);
  }
  void run() {
    if (plan.chunks == 1) {
      for (const Segment& segment : segments) {
        prepared.run(args, segment, weights, {true, false}, stream);
        finish_segment(segment, {});
      }
      return;
    }
    const ChunkArrays arrays(args, plan, false, stream);
    const bool once = segments.size() == 1;
    for (const Segment& segment : segments) {
      prepared.run(args, segment, weights, {once, false}, stream);
      summarise_segment(segment, arrays.chunks());
    }
    carry(args, args.batch, plan.chunks, arrays.chunks(), stream);
    for (const Segment& segment : segments) {
      if (!once) prepared.run(args, segment, weights, {true, false}, stream);
      finish_segment(segment, arrays.chunks());
    }
  }
};

}  // namespace
}  // namespace block

void mamba_block(const MambaBlockArgs& args, Stream stream) { block::Forward(args, stream).run(); }

}  // namespace pm::cuda
