// Bidirectional Mamba block (paper equation 1; Vim's "v2" block):
//   hn = RMSNorm(t);  x, z = in_proj(hn);  y_p = scan_p(SiLU(conv_p(x))) * SiLU(z) for both directions p;
//   out = out_proj(y_forward + y_backward) + t
// The block below is composed of the engine's operators; it is the contract that fused implementations must equal.
#pragma once
#include "autograd/core/variable.h"

namespace pm {

// Parameters of one direction. d_inner = expand * channels.
struct MambaDirection {
  Variable conv_weight;  // (d_inner, 1, d_conv)
  Variable conv_bias;    // (d_inner)
  Variable x_proj;       // (dt_rank + 2 * d_state, d_inner): rows of dt, then B, then C
  Variable dt_weight;    // (d_inner, dt_rank)
  Variable dt_bias;      // (d_inner)
  Variable A_log;        // (d_inner, d_state), A = -exp(A_log)
  Variable D_skip;       // (d_inner)
};

struct MambaBlock {
  Variable norm;      // (channels)
  Variable in_proj;   // (2 * d_inner, channels): rows of x, then z
  Variable out_proj;  // (channels, d_inner)
  MambaDirection forward;
  MambaDirection backward;  // the same on the reversed sequence
  double norm_eps = 1e-5;
  bool divide_out = false;

  // tokens: (batch, seq_len, channels); the result has the same shape. Throws ShapeError when a parameter does not fit.
  Variable operator()(Context& ctx, const Variable& tokens) const;
};

}  // namespace pm
