// The kernels of the fused Mamba block as its passes call them (mamba_block.cu). Maths and names:
// engine/ops/scan/mamba_block.h.
#pragma once
#include <cstdint>

#include "engine/core/backend.h"
#include "engine/core/dtype.h"
#include "engine/ops/scan/mamba_block_plan.h"

namespace pm::cuda::block {

// Sequences of one launch and how they are cut (block.cuh). Rows of activations: batch * seq_len, sequence after sequence.
struct Sequences {
  int64_t batch = 0, seq_len = 0, chunks = 0;  // chunks of each sequence
  int chunk_len = 0;                           // a multiple of 8
  int d_inner = 0, width = 0, subs = 0, groups = 0;
  int proj_width = 0;  // columns of a projected row: B (16), C (16), dt (dt_rank), zeros up to a multiple of 4

#ifdef __CUDACC__
  __host__ __device__
#endif
      int64_t
      pairs() const {
    return batch * chunks;
  }
  int64_t rows() const { return batch * seq_len; }
};

// What one direction makes of its rows.
struct Projected {
  void* u;      // (rows, d_inner)
  void* delta;  // (rows, d_inner), after bias and softplus
  void* proj;   // (rows, proj_width)
};

// Chunk summaries of both directions; after carry() what enters each chunk. float32.
struct Chunks {
  float* states = nullptr;      // (2, pairs, d_inner, 16)
  float* adjoints = nullptr;    // the same; null in a forward call
  float* delta_sums = nullptr;  // (2, pairs, d_inner)
  int64_t pairs = 0;            // of the whole arrays: a segment sees a range of them
};

// block_conv.cu: u of both directions from x (rows, d_inner).
void convolve(const Sequences&, const MambaBlockArgs&, const void* x, const Projected (&out)[2], Stream);
struct ConvGrads {
  const void *du[2], *du_proj[2];        // (rows, d_inner): from the scan, and through x_proj
  void* dx;                              // (rows, d_inner)
  float *conv_weight[2], *conv_bias[2];  // gradients, overwritten
};
void convolve_grad(const Sequences&, const MambaBlockArgs&, const void* x, const ConvGrads&, Stream);

// block_prepare.cu: layers of few channels, whose weights fit into shared memory many times over: all from tokens to what
// the scans read in one kernel. x_proj: reordered. inputs: null where not wanted.
struct PreparedInputs {
  void *hn, *x, *z;  // (rows, channels), (rows, d_inner) twice
};
void prepare_narrow(const Sequences&, const MambaBlockArgs&, const void* tokens, const float* const (&x_proj)[2],
                    const PreparedInputs& inputs, const Projected (&out)[2], Stream);

// block_weights.cu: the gradient of a reordered x_proj (proj_width, d_inner), back in the order of x_proj.
void restore_x_proj(const MambaBlockArgs&, const float* gradient, void* x_proj, Stream);

// block_project.cu: delta of both directions from the dt columns of proj.
void step_sizes(const Sequences&, const MambaBlockArgs&, const Projected (&rows)[2], Stream);
// dproj (rows, proj_width) of one direction: B and C columns summed over the channel groups, dt columns from ddt (rows,
// dt_rank); and dt (rows, dt_rank) taken out of proj.
struct PairGrads {
  const float* partials;  // (groups, rows, 32)
  const void* ddt;        // (rows, dt_rank)
  const void* proj;       // (rows, proj_width)
  void* dproj;            // (rows, proj_width)
  void* dt;               // (rows, dt_rank)
};
void gather_pair_grads(const Sequences&, const MambaBlockArgs&, const PairGrads&, Stream);

// Zeros in the first `lead` and the last `trail` of `rows` rows of each tensor (rows, columns).
struct HaloTensors {
  void* data[5];
};
void clear_halo(const HaloTensors&, int64_t rows, int64_t columns, int64_t lead, int64_t trail, DType, Stream);

// block_scan.cu
void summarise(const Sequences&, const MambaBlockArgs&, const Projected (&rows)[2], const Chunks&, int64_t first_pair,
               Stream);
// y = (y_forward + y_reverse) * share * silu(z), (rows, d_inner). chunks.states null: one chunk, which starts from zero.
void finish(const Sequences&, const MambaBlockArgs&, const Projected (&rows)[2], const Chunks&, int64_t first_pair,
            const void* z, void* y, Stream);

// block_finish.cu: the same for one chunk of many channels a block. False where that is not the case: nothing is done then.
bool finish_wide(const Sequences&, const MambaBlockArgs&, const Projected (&rows)[2], const Chunks&, int64_t first_pair,
                 const void* z, void* y, Stream);

// block_carry.cu: summaries of `batch` sequences of `chunks` chunks become what enters each chunk, in place.
void carry(const MambaBlockArgs&, int64_t batch, int64_t chunks, const Chunks&, Stream);

// block_summary_grad.cu: states and adjoints of every chunk from zero. dy: (rows, d_inner), gradient of y.
void summarise_grad(const Sequences&, const MambaBlockArgs&, const Projected (&rows)[2], const Chunks&,
                    int64_t first_pair, const void* z, const void* dy, Stream);

// block_grad.cu, chunks of at most kGradChunk tokens, a multiple of 4: both directions, the forward one first.
struct ScanGrads {
  void* y;                  // (rows, d_inner)
  void* dz;                 // (rows, d_inner)
  void *du[2], *ddelta[2];  // (rows, d_inner); ddelta before softplus
  float* pairs[2];          // (groups, rows, 32): partial dB, dC
  float* parameters;  // (blocks, 2, d_inner, 18): partial dA (by A itself), dD, dbias; blocks = parameter_rows(...)
};
int64_t parameter_rows(const Sequences&);
int64_t parameter_columns(const MambaBlockArgs&);  // 2 * d_inner * 18
void scan_grad(const Sequences&, const MambaBlockArgs&, const Projected (&rows)[2], const Chunks&, int64_t first_pair,
               const void* z, const void* dy, const ScanGrads&, Stream);
// Sums of `rows` rows of parameter partials to the gradients of both directions.
void sum_parameters(const MambaBlockArgs&, const float* partials, int64_t rows, const MambaDirectionGradArgs (&out)[2],
                    Stream);

// block_project_grad.cu: narrow layers: from ddelta and pairs back through dt_proj and x_proj, both directions in one kernel.
// du_proj: (rows, d_inner). out: of x_proj and dt_weight.
void project_grad_narrow(const Sequences&, const MambaBlockArgs&, const Projected (&rows)[2], const ScanGrads&,
                         void* const (&du_proj)[2], const MambaDirectionGradArgs (&out)[2], Stream);

}  // namespace pm::cuda::block
