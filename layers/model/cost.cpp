#include "layers/model/cost.h"

#include <algorithm>

#include "engine/ops/scan/mamba_block_plan.h"

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

// Tokens of one image in each layer; regions becomes what is left after the last.
std::vector<int64_t> layer_tokens(const ModelConfig& config, int64_t& regions) {
  const int64_t first = regions;
  int64_t region_tokens = config.region_size * config.region_size;
  std::vector<int64_t> tokens;
  for (const LayerConfig& layer : config.layers) {
    tokens.push_back(regions * (region_tokens + 1));
    regions -= config.fusion_k(first, regions);
    if (layer.expansion) region_tokens /= 2;
  }
  return tokens;
}

}  // namespace

ModelCost model_cost(const ModelConfig& config, int64_t height, int64_t width) {
  const int64_t side = config.region_size;
  ModelCost cost;
  cost.regions = ((height + side - 1) / side) * ((width + side - 1) / side);
  cost.regions_left = cost.regions;
  const std::vector<int64_t> counts = layer_tokens(config, cost.regions_left);
  cost.first_tokens = counts.front();
  for (size_t i = 0; i < counts.size(); ++i) {
    const int64_t channels = config.layers[i].channels;
    const auto tokens = static_cast<double>(counts[i]);
    cost.multiply_accumulates += tokens * block_operations(config, channels);
    cost.exponentials += 2.0 * tokens * static_cast<double>(config.d_inner(channels) * config.d_state);
  }
  return cost;
}

std::vector<int64_t> spare_bytes(const ModelConfig& config, int64_t regions, int64_t batch, DType activation) {
  const std::vector<int64_t> counts = layer_tokens(config, regions);
  std::vector<int64_t> held;
  int64_t kept = 0, most = 0;
  for (size_t i = 0; i < counts.size(); ++i) {
    const int64_t channels = config.layers[i].channels, tokens = batch * counts[i];
    const int64_t bytes = tokens * channels * static_cast<int64_t>(size_of(activation));
    kept += bytes;
    held.push_back(kept + 2 * bytes + cuda::block::carried_bytes(tokens, config.d_inner(channels)));
    most = std::max(most, held.back());
  }
  for (int64_t& bytes : held) bytes = most - bytes;
  return held;
}

}  // namespace pm
