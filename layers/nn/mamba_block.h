// Bidirectional Mamba block (paper equation 1; Vim's "v2" block):
//   hn = RMSNorm(t);  x, z = in_proj(hn);  y_p = scan_p(SiLU(conv_p(x))) * SiLU(z) for both directions p;
//   out = out_proj(y_forward + y_backward) + t
// Two ways to the same numbers: composed of the engine's smaller operators, or as one operator (autograd/ops/
// mamba_block.h), which must equal the composed one.
#pragma once
#include "autograd/ops/mamba_block.h"

namespace pm {

struct MambaBlock : MambaParameters {
  double norm_eps = 1e-5;
  bool divide_out = false;  // half the sum of both directions

  // tokens: (batch, seq_len, channels); the result has the same shape. Throws ShapeError when a parameter does not fit.
  // One operator where one_operator() says so, else composed. `recompute` keeps only the tokens between forward and
  // backward, which the one operator always does. spare_bytes: engine/ops/scan/mamba_block.h.
  Variable operator()(Context& ctx, const Variable& tokens, bool recompute = false, int64_t spare_bytes = 0) const;
  // Every intermediate value is kept for the backward pass. For any shape and device.
  Variable composed(Context& ctx, const Variable& tokens) const;
  // On CUDA where the kernels cover the shape. On the CPU the one operator is the same arithmetic, written to be read.
  bool one_operator(Context& ctx, const Variable& tokens) const;
};

}  // namespace pm
