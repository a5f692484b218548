#include "layers/model/cost.h"

namespace pm {
namespace {

// Multiply-accumulates per token of one block.
double block_operations(const ModelConfig& config, int64_t channels) {
  const auto c = static_cast<double>(channels), inner = static_cast<double>(config.d_inner(channels));
  const auto rank = static_cast<double>(config.dt_rank(channels)), d_state = static_cast<double>(config.d_state);
  const double direction = inner * static_cast<double>(config.d_conv) + inner * (rank + 2 * d_state) + inner * rank +
                           3 * inner * d_state;  // per state: delta B u, a s + that, C s
  return 2 * inner * c + 2 * direction + inner * c;
}

}  // namespace

ModelCost model_cost(const ModelConfig& config, int64_t height, int64_t width) {
  const int64_t side = config.region_size;
  ModelCost cost;
  cost.regions = ((height + side - 1) / side) * ((width + side - 1) / side);
  double region_tokens = static_cast<double>(side) * static_cast<double>(side);
  int64_t regions = cost.regions;
  for (const LayerConfig& layer : config.layers) {
    const double tokens = static_cast<double>(regions) * (region_tokens + 1.0);
    if (cost.first_tokens == 0) cost.first_tokens = static_cast<int64_t>(tokens);
    cost.multiply_accumulates += tokens * block_operations(config, layer.channels);
    cost.exponentials += 2.0 * tokens * static_cast<double>(config.d_inner(layer.channels) * config.d_state);
    regions -= config.fusion_k(cost.regions, regions);
    if (layer.expansion) region_tokens /= 2.0;
  }
  cost.regions_left = regions;
  return cost;
}

}  // namespace pm
