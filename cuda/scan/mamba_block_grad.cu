// The fused Mamba block on CUDA: its gradient, from the tokens and dout alone.
//
// passes  : 1. prepare each segment again (mamba_block.cu), dy = dout out_proj, summaries of states and adjoints
//           2. carry over the chunks, states along each direction and adjoints against it
//              Neither where a sequence is one chunk.
//           3. each segment: prepare (one segment: as it is), gradient scans, then back through dt_proj, x_proj, the
//              convolutions, in_proj and the norm
// segments: a part of a sequence is differentiated with its halo: du and dz are zero there, so the rows of the halo get what
//           this part's convolutions send them and nothing else. dtokens begins as dout then, and the segments add to it in
//           order, overlapping rows too. Weight gradients of the segments are added in the same order.
// memory  : (16 * d_inner + 4.5 * channels + ..) values a row of a segment; 66 floats per channel and chunk of 64 tokens
#include "cuda/scan/mamba_block.cuh"
#include "engine/ops/elementwise/scaled_add.h"
#include "engine/ops/gemm/linear.h"
#include "engine/ops/norm/rms_norm.h"

namespace pm::cuda {
namespace block {
namespace {

constexpr int kWeights = 3 + 2 * 7;  // parameters of a block

// Where the gradients of the parameters go, and how many elements each has.
struct WeightGrads {
  float* data[kWeights];
  int64_t size[kWeights];
  int64_t total = 0;

  WeightGrads(const MambaBlockGradArgs& grads) {
    const MambaBlockArgs& a = grads.forward;
    int i = 0;
    const auto add = [&](void* pointer, int64_t count) {
      data[i] = static_cast<float*>(pointer);
      size[i++] = count;
      total += count;
    };
    add(grads.norm, a.channels);
    add(grads.in_proj, 2 * a.d_inner * a.channels);
    add(grads.out_proj, a.channels * a.d_inner);
    for (const MambaDirectionGradArgs& p : grads.direction) {
      add(p.conv_weight, a.d_inner * a.d_conv);
      add(p.conv_bias, a.d_inner);
      add(p.x_proj, (a.dt_rank + 2 * a.d_state) * a.d_inner);
      add(p.dt_weight, a.d_inner * a.dt_rank);
      add(p.dt_bias, a.d_inner);
      add(p.A_log, a.d_inner * a.d_state);
      add(p.D_skip, a.d_inner);
    }
  }
  // The same parameters one after the other from `memory`.
  WeightGrads placed_at(float* memory) const {
    WeightGrads placed = *this;
    for (int i = 0; i < kWeights; ++i) {
      placed.data[i] = memory;
      memory += size[i];
    }
    return placed;
  }
  float* norm() const { return data[0]; }
  float* in_proj() const { return data[1]; }
  float* out_proj() const { return data[2]; }
  MambaDirectionGradArgs direction(int p) const {
    float* const* d = data + 3 + 7 * p;
    return {d[0], d[1], d[2], d[3], d[4], d[5], d[6]};
  }
};

struct Gradient {
  const MambaBlockGradArgs& grads;
  const MambaBlockArgs& args;
  Stream stream;
  Plan plan;
  std::vector<Segment> segments;
  int64_t rows, width;  // most rows of a segment; columns of a projected row
  Weights weights;
  Prepared prepared;
  Buffer dy, y, dz, du[2], ddelta[2], du_proj[2];  // (rows, d_inner); dx takes the place of dy
  Buffer dproj, dt, ddt;                           // of one direction at a time; without memory in narrow layers

  Gradient(const MambaBlockGradArgs& g, Stream s)
      : grads(g),
        args(g.forward),
        stream(s),
        plan(gradient_plan(args)),
        segments(cut(args, plan)),
        rows(plan.rows),
        width(proj_width_of(args)),
        weights(args, s),
        prepared(args, rows, true, s),
        dy(wide()),
        y(wide()),
        dz(wide()),
        du{wide(), wide()},
        ddelta{wide(), wide()},
        du_proj{wide(), wide()},
        dproj(s, narrow(args) ? 0 : rows * width, size_of(args.dtype)),
        dt(s, narrow(args) ? 0 : rows * args.dt_rank, size_of(args.dtype)),
        ddt(s, narrow(args) ? 0 : rows * args.dt_rank, size_of(args.dtype)) {}

  Buffer wide() const { return Buffer(stream, rows * args.d_inner, size_of(args.dtype)); }
  Sequences sequences(const Segment& segment) const {
    return sequences_of(args, segment.sequences, segment.tokens, plan.chunk_len, true);
  }
  int64_t first_pair(const Segment& segment) const {
    return segment.first_sequence * plan.chunks + segment.first_token / plan.chunk_len;
  }
  int64_t first_row(const Segment& segment) const {
    return segment.first_sequence * args.seq_len + segment.first_token;
  }
  const void* dout(const Segment& segment) const {
    return offset(grads.dout, first_row(segment) * args.channels, args.dtype);
  }

  // with_inputs: for the way back through convolutions, in_proj and norm.
  void prepare(const Segment& segment, bool with_inputs) {
    prepared.run(args, segment, weights, {true, with_inputs}, stream);
    linear_grad_input({{{dout(segment), args.channels}},
                       weights.out_proj.weight,
                       dy.at(segment.lead * args.d_inner),
                       segment.rows(),
                       args.d_inner,
                       args.channels,
                       args.dtype,
                       weights.out_proj.stored},
                      stream);
  }
  void summarise_segment(const Segment& segment, const Chunks& summaries) {
    Projected core[2];
    prepared.core(args, segment, core);
    const int64_t lead = segment.lead * args.d_inner;
    // Summaries are made by the threads of the forward scans: their geometry, these chunks.
    const Sequences s = sequences_of(args, segment.sequences, segment.tokens, plan.chunk_len, false);
    summarise_grad(s, args, core, summaries, first_pair(segment), prepared.z.at(lead), dy.at(lead), stream);
  }

  // From ddelta and pairs through dt_proj and x_proj.
  void project_grad_general(const Sequences& s, const Projected (&core)[2], const ScanGrads& scan_grads,
                            void* const (&through_proj)[2], const MambaDirectionGradArgs (&out)[2]) {
    const int64_t count = s.rows();
    const Scratch<float> dx_proj(stream, width * args.d_inner);
    for (int p = 0; p < 2; ++p) {
      const LinearDout from_delta{scan_grads.ddelta[p], args.d_inner};
      linear_grad_input({{from_delta},
                         weights.dt[p].weight,
                         ddt.get(),
                         count,
                         args.dt_rank,
                         args.d_inner,
                         args.dtype,
                         weights.dt[p].stored},
                        stream);
      gather_pair_grads(s, args, {scan_grads.pairs[p], ddt.get(), core[p].proj, dproj.get(), dt.get()}, stream);
      linear_grad_weight({{from_delta}, dt.get(), out[p].dt_weight, count, args.dt_rank, args.d_inner, args.dtype},
                         stream);
      const LinearDout from_proj{dproj.get(), width};
      linear_grad_input({{from_proj},
                         weights.x_proj[p].weight,
                         through_proj[p],
                         count,
                         args.d_inner,
                         width,
                         args.dtype,
                         weights.x_proj[p].stored},
                        stream);
      linear_grad_weight({{from_proj}, core[p].u, dx_proj.get(), count, args.d_inner, width, args.dtype}, stream);
      restore_x_proj(args, dx_proj.get(), out[p].x_proj, stream);
    }
  }

  // Through both scans, dt_proj and x_proj: du, du_proj, dz, y.
  void scans(const Segment& segment, const Chunks& entering, const WeightGrads& out) {
    Projected core[2];
    prepared.core(args, segment, core);
    const Sequences s = sequences(segment);
    const int64_t lead = segment.lead * args.d_inner, count = segment.rows(), parameters = parameter_rows(s);
    const Scratch<float> pairs(stream, 2 * s.groups * count * 32),
        partials(stream, parameters * parameter_columns(args));
    const ScanGrads scan_grads{y.at(lead),
                               dz.at(lead),
                               {du[0].at(lead), du[1].at(lead)},
                               {ddelta[0].at(lead), ddelta[1].at(lead)},
                               {pairs.get(), pairs.get() + s.groups * count * 32},
                               partials.get()};
    scan_grad(s, args, core, entering, first_pair(segment), prepared.z.at(lead), dy.at(lead), scan_grads, stream);
    const MambaDirectionGradArgs directions[2] = {out.direction(0), out.direction(1)};
    sum_parameters(args, scan_grads.parameters, parameters, directions, stream);
    void* const through_proj[2] = {du_proj[0].at(lead), du_proj[1].at(lead)};
    if (narrow(args)) {
      project_grad_narrow(s, args, core, scan_grads, through_proj, directions, stream);
    } else {
      project_grad_general(s, core, scan_grads, through_proj, directions);
    }
    // Rows of the halo get no gradient from this segment's scans.
    clear_halo({{du[0].get(), du[1].get(), du_proj[0].get(), du_proj[1].get(), dz.get()}}, segment.all_rows(),
               args.d_inner, segment.lead, segment.trail, args.dtype, stream);
    linear_grad_weight(
        {{{dout(segment), args.channels}}, y.at(lead), out.out_proj(), count, args.d_inner, args.channels, args.dtype},
        stream);
  }

  // Through the convolutions, in_proj and the norm, halo included: dtokens.
  void projections(const Segment& segment, const WeightGrads& out) {
    const int64_t count = segment.all_rows();
    void* dx = dy.get();
    const Sequences all =
        sequences_of(args, segment.sequences, segment.lead + segment.tokens + segment.trail, plan.chunk_len, true);
    const MambaDirectionGradArgs forward = out.direction(0), reverse = out.direction(1);
    convolve_grad(all, args, prepared.x.get(),
                  {{du[0].get(), du[1].get()},
                   {du_proj[0].get(), du_proj[1].get()},
                   dx,
                   {static_cast<float*>(forward.conv_weight), static_cast<float*>(reverse.conv_weight)},
                   {static_cast<float*>(forward.conv_bias), static_cast<float*>(reverse.conv_bias)}},
                  stream);
    const std::vector<LinearDout> dxz = {{dx, args.d_inner}, {dz.get(), args.d_inner}};
    linear_grad_weight({dxz, prepared.hn.get(), out.in_proj(), count, args.channels, 2 * args.d_inner, args.dtype},
                       stream);
    void* dhn = y.get();
    linear_grad_input(
        {dxz, weights.in_proj.weight, dhn, count, args.channels, 2 * args.d_inner, args.dtype, weights.in_proj.stored},
        stream);
    const int64_t at = (first_row(segment) - segment.lead) * args.channels;
    void* dtokens = offset(grads.dtokens, at, args.dtype);
    // The residual: already in dtokens where segments overlap (run).
    const void* residual = segment.tokens == args.seq_len ? offset(grads.dout, at, args.dtype) : dtokens;
    rms_norm_grad({dhn, offset(args.tokens, at, args.dtype), args.norm, dtokens, out.norm(), count, args.channels,
                   args.norm_eps, args.dtype, residual},
                  stream);
  }

  void run() {
    const bool carried = plan.chunks > 1, once = segments.size() == 1;  // one chunk: it starts from zero at both ends
    const ChunkArrays arrays(args, plan, true, stream);
    const Chunks entering = carried ? arrays.chunks() : Chunks{};
    for (const Segment& segment : segments) {
      if (carried || once) prepare(segment, once);
      if (carried) summarise_segment(segment, entering);
    }
    if (carried) carry(args, args.batch, plan.chunks, entering, stream);
    if (segments[0].tokens < args.seq_len) {
      PM_CUDA_CHECK(
          cudaMemcpyAsync(grads.dtokens, grads.dout,
                          static_cast<size_t>(args.batch * args.seq_len * args.channels) * size_of(args.dtype),
                          cudaMemcpyDeviceToDevice, raw(stream)));
    }
    const WeightGrads result(grads);
    const Scratch<float> memory(stream, once ? 0 : 2 * result.total);
    for (size_t i = 0; i < segments.size(); ++i) {
      if (!once) prepare(segments[i], true);
      const WeightGrads out = once ? result : result.placed_at(memory.get() + (i == 0 ? 0 : result.total));
      scans(segments[i], entering, out);
      projections(segments[i], out);
      if (i > 0) {
        scaled_add({memory.get(), memory.get() + result.total, memory.get(), 1.0, 1.0, 0.0, result.total, DType::f32},
                   stream);
      }
    }
    if (once) return;
    const WeightGrads sum = result.placed_at(memory.get());
    for (int i = 0; i < kWeights; ++i) {
      PM_CUDA_CHECK(cudaMemcpyAsync(result.data[i], sum.data[i], static_cast<size_t>(result.size[i]) * sizeof(float),
                                    cudaMemcpyDeviceToDevice, raw(stream)));
    }
  }
};

}  // namespace
}  // namespace block

void mamba_block_grad(const MambaBlockGradArgs& grads, Stream stream) { block::Gradient(grads, stream).run(); }

}  // namespace pm::cuda
