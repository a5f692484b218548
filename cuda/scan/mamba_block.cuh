// Host side of the fused Mamba block, shared by its forward pass (mamba_block.cu) and its gradient (mamba_block_grad.cu):
// buffers, and the way from tokens to what the scans read. How rows are cut: engine/ops/scan/mamba_block_plan.h.
#pragma once
#include "cuda/core/launch.cuh"
#include "cuda/scan/block.h"

namespace pm::cuda::block {

// Geometry of `sequences` sequences of `tokens` tokens. for_gradient: as block_grad.cu needs it.
Sequences sequences_of(const MambaBlockArgs& args, int64_t sequences, int64_t tokens, int64_t chunk_len,
                       bool for_gradient);

// Device memory that is freed in stream order; elements of the storage type unless said otherwise.
class Buffer {
 public:
  Buffer(Stream stream, int64_t elements, size_t element_bytes)
      : scratch_(stream, elements * static_cast<int64_t>(element_bytes)), size_(element_bytes) {}
  void* at(int64_t element) const { return scratch_.get() + element * static_cast<int64_t>(size_); }
  void* get() const { return scratch_.get(); }

 private:
  Scratch<char> scratch_;
  size_t size_;
};

// A matrix in float32, and in the storage type where that is another one.
struct Matrix {
  const void* weight = nullptr;
  const void* stored = nullptr;
};
// The matrices of a block as its kernels read them, made once a call; x_proj reordered (block_weights.cu).
class Weights {
 public:
  Weights(const MambaBlockArgs& args, Stream stream);
  Matrix in_proj, out_proj, x_proj[2], dt[2];
  const float* x_proj_values(int direction) const { return static_cast<const float*>(x_proj[direction].weight); }

 private:
  Scratch<float> reordered_;
  Scratch<char> rounded_;
};

// What the scans read, for one segment, halo included.
struct Prepared {
  // for_gradient: hn and x may be wanted. Where one kernel prepares a layer, they have no memory otherwise.
  Prepared(const MambaBlockArgs& args, int64_t max_rows, bool for_gradient, Stream stream);
  struct Wanted {
    bool z, inputs;  // inputs: hn and x, which the scans do not read
  };
  // Fills u, delta and proj for a segment, and what is wanted.
  void run(const MambaBlockArgs& args, const Segment& segment, const Weights& weights, Wanted wanted, Stream stream);
  // The same, without the halo.
  void core(const MambaBlockArgs& args, const Segment& segment, Projected (&rows)[2]) const;

  Buffer hn, x, z;  // (rows, channels), (rows, d_inner) twice
  Buffer u[2], delta[2], proj[2];

 private:
  void run_general(const MambaBlockArgs& args, const Sequences& s, const void* tokens, const Weights& weights,
                   bool with_z, const Projected (&all)[2], Stream stream);
};

inline const void* offset(const void* pointer, int64_t elements, DType dtype) {
  return static_cast<const char*>(pointer) + elements * static_cast<int64_t>(size_of(dtype));
}
inline void* offset(void* pointer, int64_t elements, DType dtype) {
  return static_cast<char*>(pointer) + elements * static_cast<int64_t>(size_of(dtype));
}

// Chunk summaries of all sequences.
class ChunkArrays {
 public:
  // None where every sequence is one chunk.
  ChunkArrays(const MambaBlockArgs& args, const Plan& plan, bool with_adjoints, Stream stream);
  Chunks chunks() const;

 private:
  int64_t pairs_;
  Scratch<float> states_, adjoints_, delta_sums_;
};

}  // namespace pm::cuda::block
