// The gated selective scan of one direction; see engine/ops/scan/selective_scan.h. Only the inputs are kept for the
// backward pass: states are computed again there.
#pragma once
#include "autograd/core/variable.h"

namespace pm {

// u, delta, z: (batch, seq_len, d_inner); A: (d_inner, d_state); B, C: (batch, seq_len, d_state); D_skip, delta_bias:
//              (d_inner)
Variable selective_scan(Context& ctx, const Variable& u, const Variable& delta, const Variable& A, const Variable& B,
                        const Variable& C, const Variable& D_skip, const Variable& z, const Variable& delta_bias,
                        bool reverse);

}  // namespace pm
