// The block and its gradient in float, made to be fast; mamba_block.cpp has the plain one in double.
#pragma once
#include "engine/ops/scan/mamba_block.h"

namespace pm::cpu {

void mamba_block_float(const MambaBlockArgs& args, Backend& memory);
void mamba_block_grad_float(const MambaBlockGradArgs& args, Backend& memory);

}  // namespace pm::cpu
