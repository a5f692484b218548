// The Pixel-Mamba network: pixels to tokens, layers of Mamba block, region fusion and token expansion, mean of the
// remaining regions' CLS tokens, head.
#pragma once
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "autograd/core/variable.h"
#include "layers/model/config.h"
#include "layers/nn/mamba_block.h"

namespace pm {

struct Parameter {
  std::string name;  // name in model.safetensors
  Variable value;
  bool decay;  // weight decay touches matrices only: not norms, biases, CLS, A_log, D
};

struct ForwardOptions {
  bool recompute = true;     // keep only each block's input between forward and backward (see MambaBlock)
  bool fusion_maps = false;  // return the merge map of every layer
  // Stochastic depth (Huang et al., ECCV 2016), for training: layer i of n leaves its block out with probability
  // drop_path * i / (n - 1), drawn from ctx.rng() once per layer and pass; what a block adds is scaled by 1 / (1 - probability)
  // otherwise. In [0, 1).
  double drop_path = 0.0;
  // Called with the tokens that each layer hands on, (batch, regions, region_len, channels).
  std::function<void(int64_t layer, const Tensor& tokens)> observe;
};

struct ForwardResult {
  Variable logits;           // (batch, num_classes), f32 (f64 in double precision); undefined without a head
  Variable embedding;        // (batch, embedding_channels), same type
  int64_t regions = 0;       // per image, before the first layer
  int64_t regions_left = 0;  // per image, after the last one
  std::vector<Tensor>
      fusion_maps;  // per layer (batch, regions before it) i64: place after the layer; undefined where none
};

class PixelMamba {
 public:
  // Random weights from `seed`, the same on every device (published initialisation). `activation` is the type of tokens:
  // f32, bf16 on CUDA, f64 on the CPU. Throws ConfigError, DTypeError.
  PixelMamba(Context& ctx, ModelConfig config, DType activation, uint64_t seed);

  // image: u8 (batch, height, width, 3), or float (batch, 3, height, width) already normalised and of parameter type.
  // All images of a batch share one size.
  ForwardResult forward(Context& ctx, const Variable& image, const ForwardOptions& options = {}) const;

  const ModelConfig& config() const { return config_; }
  DType activation() const { return activation_; }
  // In a fixed order; the Variables share memory with the network.
  std::vector<Parameter>& parameters() { return parameters_; }
  const std::vector<Parameter>& parameters() const { return parameters_; }

  // Copies weights by name from float tensors on the CPU. Throws ConfigError listing every missing, extra or misshaped one.
  void load(Context& ctx, const std::map<std::string, Tensor>& weights);
  // The same, but takes what fits and leaves the rest; returns the names it took. For starting a fine-tune.
  std::vector<std::string> load_matching(Context& ctx, const std::map<std::string, Tensor>& weights);
  // All weights as f32 on the CPU, by name.
  std::map<std::string, Tensor> weights(Context& cpu) const;

 private:
  Variable run_layers(Context& ctx, Variable tokens, const ForwardOptions& options, ForwardResult& result) const;
  Variable shrink(Context& ctx, const Variable& tokens, size_t i, int64_t k, int64_t& region_h, int64_t& region_w,
                  const ForwardOptions& options, ForwardResult& result) const;

  ModelConfig config_;
  DType activation_;
  std::vector<Parameter> parameters_;
  Variable cls_token_;  // (1, 1, 3)
  std::vector<MambaBlock> blocks_;
  Variable norm_f_;       // (embedding_channels)
  Variable head_weight_;  // (num_classes, embedding_channels)
  Variable head_bias_;    // (num_classes)
};

}  // namespace pm
