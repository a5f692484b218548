// Shape of a Pixel-Mamba network: one entry per layer and the choices that the paper leaves open.
// Source: "From Pixels to Gigapixels: Bridging Local Inductive Bias and Long-Range Dependencies with Pixel-Mamba",
// tables 7 and 8 for the published sizes.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "engine/ops/token/scan_order.h"
#include "engine/ops/token/token_expansion.h"

namespace pm {

struct LayerConfig {
  int64_t channels = 0;                // d_model of this layer
  std::optional<Expansion> expansion;  // token expansion after the layer, if any
};

enum class FusionCount { initial, current };  // which region count sets the number of merges per layer
enum class Head { none, classification, survival };

struct ModelConfig {
  std::vector<LayerConfig> layers;
  int64_t d_state = 16;
  int64_t d_conv = 4;
  int64_t expand = 2;         // d_inner = expand * channels
  int64_t region_size = 224;  // pixels per side of a window
  double fusion_alpha = 0.8;
  FusionCount fusion_count = FusionCount::initial;
  double norm_eps = 1e-5;
  bool divide_out = false;   // halve the sum of the two directions, as released Vim weights expect
  bool shared_conv = false;  // one convolution for both directions
  ShiftPad shift_pad = ShiftPad::replicate;
  ScanOrder scan = ScanOrder::boustrophedon;
  Head head = Head::classification;
  int64_t num_classes = 1000;  // classes, or time bins of a survival head; 0 with Head::none

  int64_t d_inner(int64_t channels) const { return expand * channels; }
  int64_t dt_rank(int64_t channels) const { return (channels + 15) / 16; }
  int64_t n_layers() const { return static_cast<int64_t>(layers.size()); }
  // Channels of the embedding: those after the last layer's expansion.
  int64_t embedding_channels() const;
  // Regions merged after a layer that sees `current` of the `initial` regions.
  int64_t fusion_k(int64_t initial, int64_t current) const;
  // Throws ConfigError naming the key, its value and what would be right.
  void validate() const;
};

// Channels that an expansion turns `channels` into.
int64_t expanded_channels(const std::optional<Expansion>& expansion, int64_t channels);

// "6m" or "21m", the published networks, or "nano", a small one to try training with on a CPU; with a classification head of
// `num_classes` (0: no head). Throws ConfigError for another name.
ModelConfig named_config(const std::string& name, int64_t num_classes);
bool is_model_name(const std::string& name);

// Trainable parameters of a network of this shape.
int64_t parameter_count(const ModelConfig& config);

}  // namespace pm
