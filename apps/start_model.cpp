#include "apps/start_model.h"

#include <cstdio>

#include "engine/core/check.h"
#include "engine/ops/backends.h"
#include "io/checkpoint/safetensors.h"
#include "io/config/model_config.h"

namespace pm::app {
namespace {

// --init names layers alone.
bool starts_random(const std::string& init) { return is_model_name(init) || init.ends_with(".json"); }

}  // namespace

ModelConfig initial_config(const std::string& init) {
  if (is_model_name(init)) return named_config(init, 1);
  return io::read_model_config(starts_random(init) ? init : init + "/config.json");
}

ModelConfig start_config(const std::string& init, const ModelOutputs& outputs, int64_t region_size) {
  ModelConfig config = initial_config(init);
  config.head = outputs.head;
  config.num_classes = outputs.number;
  if (region_size > 0) config.region_size = region_size;
  return config;
}

PixelMamba start_model(Context& ctx, const std::string& init, const RunOptions& run, const ModelOutputs& outputs,
                       int64_t region_size) {
  const DType activation = activation_type(run, ctx.device());
  const ModelConfig before = initial_config(init);
  const bool same_head = before.head == outputs.head && before.num_classes == outputs.number;
  PixelMamba model(ctx, start_config(init, outputs, region_size), activation, run.seed);
  if (starts_random(init)) {
    fmt::print(stderr, "start: {} with random weights from seed {}\n", init, run.seed);
    return model;
  }
  Context host(make_backend(Device::cpu()));
  auto weights = io::read_safetensors(host, init + "/model.safetensors");
  if (!same_head) {  // a head for other outputs means nothing here, even where its shape agrees
    weights.erase("head.weight");
    weights.erase("head.bias");
  }
  const std::vector<std::string> taken = model.load_matching(ctx, weights);
  for (const std::string& name : taken) weights.erase(name);
  std::string unused;
  for (const auto& [name, tensor] : weights)
    unused += (unused.empty() ? "; of other shape or unknown, left out: " : ", ") + name;
  PM_CHECK(!taken.empty(), ConfigError, "{}: none of its weights fits its own config.json", init);
  fmt::print(stderr, "start: {}: {} of {} tensors taken, {}{}\n", init, taken.size(), model.parameters().size(),
             same_head ? "its head kept" : "a new head", unused);
  return model;
}

}  // namespace pm::app
