#include "layers/model/config.h"

#include <algorithm>
#include <cmath>

#include "engine/core/check.h"
#include "engine/ops/token/serialize.h"

namespace pm {
namespace {

constexpr auto HC = Expansion::horizontal_cat;
constexpr auto VC = Expansion::vertical_cat;
constexpr auto HA = Expansion::horizontal_avg;
constexpr auto VA = Expansion::vertical_avg;

// The 24 layers of tables 7 and 8; the two sizes differ in the expansion of layer 11 alone.
std::vector<LayerConfig> published_layers(Expansion layer11) {
  const std::vector<std::optional<Expansion>> expansions = {HC, VC, HC, VC, {}, HC, {}, VC, {}, {}, layer11, {},
                                                            {}, VA, {}, {}, {}, {}, {}, HA, {}, VC, {},      {}};
  std::vector<LayerConfig> layers;
  int64_t channels = 3;
  for (const auto& expansion : expansions) {
    layers.push_back({channels, expansion});
    channels = expanded_channels(expansion, channels);
  }
  return layers;
}

// Small enough to learn on two processors in minutes: a region ends as one token and its CLS, one layer joins regions.
std::vector<LayerConfig> nano_layers() { return {{3, HC}, {6, VC}, {12, HC}, {24, VC}, {48, HA}, {48, VA}, {48, {}}}; }

// Beyond any network that can be run: a damaged or hostile file ends here and not in an allocation or an overflow.
constexpr size_t kMaxLayers = 1024;
constexpr int64_t kMaxChannels = 65536, kMaxExpand = 64, kMaxClasses = 1'000'000;

}  // namespace

int64_t expanded_channels(const std::optional<Expansion>& expansion, int64_t channels) {
  return expansion ? expanded_channels(*expansion, channels) : channels;
}

int64_t ModelConfig::embedding_channels() const {
  return layers.empty() ? 0 : expanded_channels(layers.back().expansion, layers.back().channels);
}

int64_t ModelConfig::fusion_k(int64_t initial, int64_t current) const {
  const double regions = static_cast<double>(fusion_count == FusionCount::initial ? initial : current);
  const auto wanted = static_cast<int64_t>(std::ceil(fusion_alpha * regions / static_cast<double>(n_layers())));
  return std::clamp<int64_t>(wanted, 0, current / 2);
}

void ModelConfig::validate() const {
  PM_CHECK(!layers.empty(), ConfigError, "layers: at least one layer is needed");
  PM_CHECK(layers.size() <= kMaxLayers, ConfigError, "layers: at most {} layers, got {}", kMaxLayers, layers.size());
  PM_CHECK(layers[0].channels == 3, ConfigError, "layers[0].channels: the first layer sees RGB pixels, so 3, got {}",
           layers[0].channels);
  int64_t horizontal = 1, vertical = 1;
  for (size_t i = 0; i < layers.size(); ++i) {
    const auto& [channels, expansion] = layers[i];
    PM_CHECK(channels >= 1 && channels <= kMaxChannels, ConfigError, "layers[{}].channels must be 1..{}, got {}", i,
             kMaxChannels, channels);
    if (i + 1 < layers.size()) {
      const int64_t next = expanded_channels(expansion, channels);
      PM_CHECK(layers[i + 1].channels == next, ConfigError, "layers[{}].channels: the layer before hands on {}, got {}",
               i + 1, next, layers[i + 1].channels);
    }
    if (expansion) (is_horizontal(*expansion) ? horizontal : vertical) *= 2;
    PM_CHECK(std::max(horizontal, vertical) <= kMaxRegionSize, ConfigError,
             "layers[{}].expansion: the expansions so far divide a region more than {} times", i, kMaxRegionSize);
  }
  const int64_t unit = std::max(horizontal, vertical);
  PM_CHECK(region_size >= 1 && region_size <= kMaxRegionSize && region_size % unit == 0, ConfigError,
           "region_size must be a multiple of {}, at most {}, for these layers (their expansions divide a region {} "
           "times across and {} "
           "times down), got {}",
           unit, kMaxRegionSize, horizontal, vertical, region_size);
  PM_CHECK(d_state >= 1 && d_state <= 64, ConfigError, "d_state must be 1..64, got {}", d_state);
  PM_CHECK(d_conv >= 1 && d_conv <= 8, ConfigError, "d_conv must be 1..8, got {}", d_conv);
  PM_CHECK(expand >= 1 && expand <= kMaxExpand, ConfigError, "expand must be 1..{}, got {}", kMaxExpand, expand);
  PM_CHECK(fusion_alpha >= 0.0 && fusion_alpha <= 1.0, ConfigError, "fusion_alpha must be 0..1, got {}", fusion_alpha);
  PM_CHECK(norm_eps > 0.0, ConfigError, "norm_eps must be positive, got {}", norm_eps);
  PM_CHECK(head == Head::none ? num_classes == 0 : num_classes >= 1 && num_classes <= kMaxClasses, ConfigError,
           "num_classes must be 1..{} with a head and 0 without, got {}", kMaxClasses, num_classes);
}

bool is_model_name(const std::string& name) { return name == "6m" || name == "21m" || name == "nano"; }

ModelConfig named_config(const std::string& name, int64_t num_classes) {
  PM_CHECK(is_model_name(name), ConfigError, "there is no model named '{}'; the names are 6m, 21m and nano", name);
  ModelConfig config;
  if (name == "nano") {
    config.layers = nano_layers();
    config.region_size = 8;
    config.d_state = 8;
    config.fusion_alpha = 0.0;
  } else {
    config.layers = published_layers(name == "6m" ? HA : HC);
  }
  config.num_classes = num_classes;
  config.head = num_classes == 0 ? Head::none : Head::classification;
  config.validate();
  return config;
}

int64_t parameter_count(const ModelConfig& config) {
  int64_t count = 3 + config.embedding_channels();  // CLS, final norm
  for (const auto& layer : config.layers) {
    const int64_t c = layer.channels, inner = config.d_inner(c), rank = config.dt_rank(c);
    const int64_t conv = inner * config.d_conv + inner;
    const int64_t direction = (rank + 2 * config.d_state) * inner + inner * rank + inner  // x_proj, dt_proj
                              + inner * config.d_state + inner;                           // A_log, D
    count += c + 2 * inner * c + c * inner + 2 * direction + (config.shared_conv ? 1 : 2) * conv;
  }
  if (config.head != Head::none) count += config.num_classes * (config.embedding_channels() + 1);
  return count;
}

}  // namespace pm
