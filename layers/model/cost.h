// What an input costs: operations of one forward pass, from the shapes alone. Its memory: apps/peak_memory.h.
#pragma once
#include <cstdint>

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

}  // namespace pm
