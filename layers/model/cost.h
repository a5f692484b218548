// What an input costs: operations of one forward pass, from the shapes alone. Its memory: apps/peak_memory.h.
#pragma once
#include <cstdint>
#include <vector>

#include "engine/core/dtype.h"
#include "layers/model/config.h"

namespace pm {

struct ModelCost {
  int64_t regions = 0;              // windows of the padded input
  int64_t regions_left = 0;         // after the last layer
  int64_t first_tokens = 0;         // tokens of the first layer
  double exponentials = 0;          // one forward pass: tokens * d_inner * d_state * 2 directions, over all layers
  double multiply_accumulates = 0;  // one forward pass: products, convolutions and scans
};

// One image of height x width pixels.
ModelCost model_cost(const ModelConfig& config, int64_t height, int64_t width);

// For each layer's block, the memory (bytes) that a training step may give to its intermediate values without a higher peak.
// What a step holds while it differentiates a layer, beside those values: the tokens that this layer and those before it
// keep, the gradients of its output and input, and the states that its scans carry between chunks. That is most in one layer
// in the middle (6m: layer 11); every other layer can spare the difference.
std::vector<int64_t> spare_bytes(const ModelConfig& config, int64_t regions, int64_t batch, DType activation);

}  // namespace pm
