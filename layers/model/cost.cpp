#include "layers/model/cost.h"

#include <algorithm>

namespace pm {
namespace {

// Values per token that live at once inside one block: while the second scan runs, and while its gradient does.
struct BlockValues {
  double forward, backward;
};

BlockValues block_values(const ModelConfig& config, int64_t channels) {
  const auto c = static_cast<double>(channels), inner = static_cast<double>(config.d_inner(channels));
  const auto d_state = static_cast<double>(config.d_state);
  const double projected = static_cast<double>(config.dt_rank(channels)) + 2 * d_state;
  const double saved =
      2 * c + 2 * inner + 2 * (2 * inner + projected) + inner;       // t, hn, x, z; u, delta, dt B C twice; y
  const double scan_gradient = 3 * inner + 2 * d_state + 2 * inner;  // du, ddelta, dz; dB, dC; its scratch
  return {2 * c + 2 * inner + inner + projected + 3 * inner, saved + c + inner + scan_gradient};
}

// Multiply-accumulates per token of one block.
double block_operations(const ModelConfig& config, int64_t channels) {
  const auto c = static_cast<double>(channels), inner = static_cast<double>(config.d_inner(channels));
  const auto rank = static_cast<double>(config.dt_rank(channels)), d_state = static_cast<double>(config.d_state);
  const double direction = inner * static_cast<double>(config.d_conv) + inner * (rank + 2 * d_state) + inner * rank +
                           3 * inner * d_state;  // per state: delta B u, a s + that, C s
  return 2 * inner * c + 2 * direction + inner * c;
}

}  // namespace

ModelCost model_cost(const ModelConfig& config, int64_t height, int64_t width, DType activation) {
  const int64_t side = config.region_size;
  ModelCost cost;
  cost.regions = ((height + side - 1) / side) * ((width + side - 1) / side);
  const double value_bytes = static_cast<double>(size_of(activation));
  double region_tokens = static_cast<double>(side) * static_cast<double>(side);
  double saved = 0.0, forward_peak = 0.0, backward_peak = 0.0;
  int64_t regions = cost.regions;
  for (const LayerConfig& layer : config.layers) {
    const double tokens = static_cast<double>(regions) * (region_tokens + 1.0);
    if (cost.first_tokens == 0) cost.first_tokens = static_cast<int64_t>(tokens);
    const BlockValues values = block_values(config, layer.channels);
    cost.multiply_accumulates += tokens * block_operations(config, layer.channels);
    cost.exponentials += 2.0 * tokens * static_cast<double>(config.d_inner(layer.channels) * config.d_state);
    saved += tokens * static_cast<double>(layer.channels) * value_bytes;
    forward_peak = std::max(forward_peak, tokens * values.forward * value_bytes);
    backward_peak = std::max(backward_peak, tokens * values.backward * value_bytes + saved);
    regions -= config.fusion_k(cost.regions, regions);
    if (layer.expansion) region_tokens /= 2.0;
  }
  cost.regions_left = regions;
  const double weights = 4.0 * static_cast<double>(parameter_count(config));
  cost.inference_bytes = forward_peak + weights;
  cost.training_bytes = std::max(backward_peak, saved) + 4.0 * weights;
  return cost;
}

}  // namespace pm
