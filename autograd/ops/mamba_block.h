// One bidirectional Mamba block as one node; see engine/ops/scan/mamba_block.h. Only tokens and parameters are kept for
// the backward pass: everything between is computed again there.
#pragma once
#include "autograd/core/variable.h"
#include "engine/ops/scan/mamba_block.h"

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

struct MambaParameters {
  Variable norm;      // (channels)
  Variable in_proj;   // (2 * d_inner, channels): rows of x, then z
  Variable out_proj;  // (channels, d_inner)
  MambaDirection forward;
  MambaDirection backward;  // on the reversed sequence; may share Variables with forward
};

// tokens: (batch, seq_len, channels)
bool mamba_block_covers(Context& ctx, const Variable& tokens, const MambaParameters& parameters);
// tokens, result: (batch, seq_len, channels)
Variable mamba_block(Context& ctx, const Variable& tokens, const MambaParameters& parameters,
                     const ops::MambaBlockOptions& options);

}  // namespace pm
