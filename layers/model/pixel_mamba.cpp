#include "layers/model/pixel_mamba.h"

#include <cmath>
#include <utility>

#include "autograd/core/reshape.h"
#include "autograd/ops/cast.h"
#include "autograd/ops/fusion_expansion.h"
#include "autograd/ops/gather_cls.h"
#include "autograd/ops/linear.h"
#include "autograd/ops/region_fusion.h"
#include "autograd/ops/region_mean.h"
#include "autograd/ops/rms_norm.h"
#include "autograd/ops/scaled_add.h"
#include "autograd/ops/serialize.h"
#include "autograd/ops/token_expansion.h"
#include "engine/core/check.h"
#include "layers/model/cost.h"
#include "layers/model/init.h"

namespace pm {
namespace {

// Makes parameters in one fixed order: the order is part of what a seed means.
class Builder {
 public:
  Builder(Context& ctx, DType dtype, uint64_t seed, std::vector<Parameter>& parameters)
      : ctx_(ctx), dtype_(dtype), rng_(seed), parameters_(parameters) {}

  Variable make(const std::string& name, const Shape& shape, const init::Fill& fill, bool decay = false) {
    const Variable value(filled(shape, fill), /*requires_grad=*/true);
    parameters_.push_back({name, value, decay});
    return value;
  }

 private:
  Tensor filled(const Shape& shape, const init::Fill& fill) {
    const RngState draw = rng_.next();
    if (ctx_.backend().counts_only()) return Tensor::empty(ctx_, shape, dtype_);
    std::vector<double> values(static_cast<size_t>(shape.numel()));
    for (size_t i = 0; i < values.size(); ++i) values[i] = fill(draw, static_cast<int64_t>(i));
    if (dtype_ == DType::f64) return Tensor::from_host(ctx_, shape, values);
    return Tensor::from_host(ctx_, shape, std::vector<float>(values.begin(), values.end()));
  }

  Context& ctx_;
  DType dtype_;
  Rng rng_;
  std::vector<Parameter>& parameters_;
};

// `suffix` is "" or "_b", as in Vim's checkpoints.
MambaDirection make_direction(Builder& builder, const ModelConfig& config, int64_t channels, const std::string& prefix,
                              const std::string& suffix, const MambaDirection* shared_conv) {
  const int64_t inner = config.d_inner(channels), rank = config.dt_rank(channels), d_state = config.d_state;
  const double conv_bound = 1.0 / std::sqrt(static_cast<double>(config.d_conv));
  const double inner_bound = 1.0 / std::sqrt(static_cast<double>(inner));
  const double rank_bound = 1.0 / std::sqrt(static_cast<double>(rank));
  MambaDirection p;
  if (shared_conv != nullptr) {
    p.conv_weight = shared_conv->conv_weight;
    p.conv_bias = shared_conv->conv_bias;
  } else {
    const std::string conv = prefix + "conv1d" + suffix;
    p.conv_weight = builder.make(conv + ".weight", {inner, 1, config.d_conv}, init::uniform(conv_bound), true);
    p.conv_bias = builder.make(conv + ".bias", {inner}, init::uniform(conv_bound));
  }
  p.x_proj = builder.make(prefix + "x_proj" + suffix + ".weight", {rank + 2 * d_state, inner},
                          init::uniform(inner_bound), true);
  const std::string dt = prefix + "dt_proj" + suffix;
  p.dt_weight = builder.make(dt + ".weight", {inner, rank}, init::uniform(rank_bound), true);
  p.dt_bias = builder.make(dt + ".bias", {inner}, init::inverse_softplus_dt(1e-3, 1e-1, 1e-4));
  p.A_log = builder.make(prefix + "A" + suffix + "_log", {inner, d_state}, init::log_range(d_state));
  p.D_skip = builder.make(prefix + "D" + suffix, {inner}, init::constant(1.0));
  return p;
}

MambaBlock make_block(Builder& builder, const ModelConfig& config, int64_t channels, const std::string& layer) {
  const int64_t inner = config.d_inner(channels);
  const double in_bound = 1.0 / std::sqrt(static_cast<double>(channels));
  const double out_bound =
      1.0 / std::sqrt(static_cast<double>(inner)) / std::sqrt(static_cast<double>(config.n_layers()));
  const std::string mixer = layer + "mixer.";
  MambaBlock block;
  block.norm_eps = config.norm_eps;
  block.divide_out = config.divide_out;
  block.norm = builder.make(layer + "norm.weight", {channels}, init::constant(1.0));
  block.in_proj = builder.make(mixer + "in_proj.weight", {2 * inner, channels}, init::uniform(in_bound), true);
  block.out_proj = builder.make(mixer + "out_proj.weight", {channels, inner}, init::uniform(out_bound), true);
  block.forward = make_direction(builder, config, channels, mixer, "", nullptr);
  block.backward =
      make_direction(builder, config, channels, mixer, "_b", config.shared_conv ? &block.forward : nullptr);
  return block;
}

}  // namespace

PixelMamba::PixelMamba(Context& ctx, ModelConfig config, DType activation, uint64_t seed)
    : config_(std::move(config)), activation_(activation) {
  config_.validate();
  Builder builder(ctx, param_dtype(activation), seed, parameters_);
  cls_token_ = builder.make("cls_token", {1, 1, 3}, init::truncated_normal(0.02));
  for (size_t i = 0; i < config_.layers.size(); ++i) {
    blocks_.push_back(make_block(builder, config_, config_.layers[i].channels, fmt::format("layers.{}.", i)));
  }
  const int64_t channels = config_.embedding_channels();
  norm_f_ = builder.make("norm_f.weight", {channels}, init::constant(1.0));
  if (config_.head != Head::none) {
    head_weight_ = builder.make("head.weight", {config_.num_classes, channels}, init::truncated_normal(0.02), true);
    head_bias_ = builder.make("head.bias", {config_.num_classes}, init::constant(0.0));
  }
}

namespace {

// Probability with which a layer leaves its block out: rises linearly from 0 in the first to `rate` in the last.
double drop_probability(double rate, size_t layer, size_t layers) {
  return layers > 1 ? rate * static_cast<double>(layer) / static_cast<double>(layers - 1) : rate;
}

}  // namespace

// Region fusion and token expansion after layer i, in one pass where both are due.
Variable PixelMamba::shrink(Context& ctx, const Variable& tokens, size_t i, int64_t k, int64_t& region_h,
                            int64_t& region_w, const ForwardOptions& options, ForwardResult& result) const {
  const auto& expansion = config_.layers[i].expansion;
  FusedRegions shrunk{tokens, Tensor()};
  if (expansion && k > 0) {
    shrunk = fusion_expansion(ctx, tokens, k, region_h, region_w, *expansion, config_.shift_pad, config_.scan);
  } else if (expansion) {
    shrunk.out = token_expansion(ctx, tokens, region_h, region_w, *expansion, config_.shift_pad, config_.scan);
  } else if (k > 0) {
    shrunk = region_fusion(ctx, tokens, k);
  }
  if (expansion) {
    region_h = expanded_h(*expansion, region_h);
    region_w = expanded_w(*expansion, region_w);
  }
  if (options.fusion_maps) result.fusion_maps.push_back(shrunk.target);
  return shrunk.out;
}

Variable PixelMamba::run_layers(Context& ctx, Variable tokens, const ForwardOptions& options,
                                ForwardResult& result) const {
  int64_t region_h = config_.region_size, region_w = config_.region_size;
  const std::vector<int64_t> spare = spare_bytes(config_, result.regions, tokens.shape()[0], activation_);
  for (size_t i = 0; i < blocks_.size(); ++i) {
    const Shape shape = tokens.shape();
    const int64_t batch = shape[0], n_regions = shape[1], region_len = shape[2], channels = shape[3];
    const Variable sequence = reshape(ctx, tokens, {batch, n_regions * region_len, channels});
    tokens = Variable();  // from here on only the block's input keeps this memory
    const double drop = drop_probability(options.drop_path, i, blocks_.size());
    Variable mixed = sequence;
    if (drop == 0.0 || uniform_at(ctx.rng().next(), 0) >= drop) {
      mixed = blocks_[i](ctx, sequence, options.recompute, spare[i]);
      if (drop > 0.0) mixed = scaled_add(ctx, mixed, 1.0 / (1.0 - drop), sequence, 1.0 - 1.0 / (1.0 - drop));
    }
    tokens = reshape(ctx, mixed, shape);

    const int64_t k = config_.fusion_k(result.regions, n_regions);
    tokens = shrink(ctx, tokens, i, k, region_h, region_w, options, result);
    if (options.observe) options.observe(static_cast<int64_t>(i), tokens.value());
  }
  return tokens;
}

ForwardResult PixelMamba::forward(Context& ctx, const Variable& image, const ForwardOptions& options) const {
  PM_CHECK(options.drop_path >= 0.0 && options.drop_path < 1.0, ConfigError,
           "drop_path must be 0 or more and below 1, got {}", options.drop_path);
  ForwardResult result;
  Variable tokens = serialize(ctx, image, cls_token_, {config_.region_size, config_.scan, activation_});
  result.regions = tokens.shape()[1];
  tokens = run_layers(ctx, std::move(tokens), options, result);
  result.regions_left = tokens.shape()[1];
  const Variable cls = cast(ctx, gather_cls(ctx, tokens), param_dtype(activation_));
  result.embedding = region_mean(ctx, rms_norm(ctx, cls, norm_f_, config_.norm_eps));
  if (config_.head != Head::none) result.logits = linear(ctx, result.embedding, head_weight_, head_bias_);
  return result;
}

namespace {

// Copies a float tensor on the CPU into a parameter of the same shape.
void copy_weight(Context& ctx, const Tensor& source, Tensor destination) {
  const auto store = [&](const auto& values) {
    if (destination.dtype() == DType::f64) {
      destination.copy_from_host(std::vector<double>(values.begin(), values.end()).data());
    } else {
      destination.copy_from_host(std::vector<float>(values.begin(), values.end()).data());
    }
  };
  switch (source.dtype()) {
    case DType::f32:
      store(source.to_host<float>());
      break;
    case DType::f64:
      store(source.to_host<double>());
      break;
    case DType::bf16: {
      std::vector<float> wide;
      for (const bfloat16 value : source.to_host<bfloat16>()) wide.push_back(static_cast<float>(value));
      store(wide);
      break;
    }
    default:
      throw DTypeError(fmt::format("a weight must be a float tensor, got {}", to_string(source.dtype())));
  }
  ctx.synchronize();
}

}  // namespace

void PixelMamba::load(Context& ctx, const std::map<std::string, Tensor>& weights) {
  std::string problems;
  std::map<std::string, Shape> expected;
  for (const Parameter& parameter : parameters_) {
    expected.emplace(parameter.name, parameter.value.shape());
    const auto found = weights.find(parameter.name);
    if (found == weights.end()) {
      problems += fmt::format("\n  missing: {} {}", parameter.name, parameter.value.shape().str());
    } else if (!(found->second.shape() == parameter.value.shape())) {
      problems += fmt::format("\n  {}: expected shape {}, got {}", parameter.name, parameter.value.shape().str(),
                              found->second.shape().str());
    }
  }
  for (const auto& [name, tensor] : weights) {
    if (!expected.contains(name))
      problems += fmt::format("\n  not part of this model: {} {}", name, tensor.shape().str());
  }
  PM_CHECK(problems.empty(), ConfigError, "the weights do not fit the configuration:{}", problems);
  for (const Parameter& parameter : parameters_) copy_weight(ctx, weights.at(parameter.name), parameter.value.value());
}

std::vector<std::string> PixelMamba::load_matching(Context& ctx, const std::map<std::string, Tensor>& weights) {
  std::vector<std::string> taken;
  for (const Parameter& parameter : parameters_) {
    const auto found = weights.find(parameter.name);
    if (found == weights.end() || !(found->second.shape() == parameter.value.shape())) continue;
    copy_weight(ctx, found->second, parameter.value.value());
    taken.push_back(parameter.name);
  }
  return taken;
}

std::map<std::string, Tensor> PixelMamba::weights(Context& cpu) const {
  std::map<std::string, Tensor> result;
  for (const Parameter& parameter : parameters_) {
    const Tensor& value = parameter.value.value();
    if (value.dtype() == DType::f64) {
      const std::vector<double> wide = value.to_host<double>();
      result.emplace(parameter.name,
                     Tensor::from_host(cpu, value.shape(), std::vector<float>(wide.begin(), wide.end())));
    } else {
      result.emplace(parameter.name, Tensor::from_host(cpu, value.shape(), value.to_host<float>()));
    }
  }
  return result;
}

}  // namespace pm
