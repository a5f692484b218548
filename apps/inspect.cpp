// inspect: describes a slide, a model folder or a published model.
#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "apps/common.h"
#include "engine/core/check.h"
#include "engine/ops/backends.h"
#include "io/checkpoint/model_folder.h"
#include "io/checkpoint/safetensors.h"
#include "io/config/model_config.h"
#include "io/slide/slide.h"
#include "layers/model/cost.h"

namespace pm::app {
namespace {

constexpr int64_t kMaxSide = 1'000'000;  // of the input that costs are given for: ten times the largest slides

struct InspectOptions {
  std::string input;
  int64_t size = 4480;
  double mpp = 4.0;
  bool json = false;
};

const char* head_name(Head head) {
  return head == Head::none ? "none" : head == Head::survival ? "survival" : "classification";
}

int inspect_model(const ModelConfig& config, const InspectOptions& options) {
  const ModelCost f32 = model_cost(config, options.size, options.size, DType::f32);
  const ModelCost bf16 = model_cost(config, options.size, options.size, DType::bf16);
  if (options.json) {
    nlohmann::ordered_json line = {{"parameters", parameter_count(config)},
                                   {"layers", config.n_layers()},
                                   {"embedding_channels", config.embedding_channels()},
                                   {"size", options.size},
                                   {"regions", f32.regions},
                                   {"regions_left", f32.regions_left},
                                   {"tokens", f32.first_tokens},
                                   {"multiply_accumulates", f32.multiply_accumulates},
                                   {"flops", 2.0 * f32.multiply_accumulates},
                                   {"inference_bytes", {{"fp32", f32.inference_bytes}, {"bf16", bf16.inference_bytes}}},
                                   {"training_bytes", {{"fp32", f32.training_bytes}, {"bf16", bf16.training_bytes}}},
                                   {"config", io::model_config_to_json(config)}};
    fmt::print("{}\n", line.dump());
    return kDone;
  }
  fmt::print("{}: Pixel-Mamba, {} parameters, {} layers, embedding of {} values, head {} ({} outputs)\n", options.input,
             parameter_count(config), config.n_layers(), config.embedding_channels(), head_name(config.head), config.num_classes);
  fmt::print("regions of {0} x {0} pixels; d_state {1}, d_conv {2}, expand {3}\n\n", config.region_size, config.d_state,
             config.d_conv, config.expand);
  fmt::print("{:>5}  {:>8}  {:>7}  {}\n", "layer", "channels", "d_inner", "expansion");
  const nlohmann::ordered_json layers = io::model_config_to_json(config)["layers"];
  for (size_t i = 0; i < config.layers.size(); ++i) {
    const int64_t channels = config.layers[i].channels;
    fmt::print("{:>5}  {:>8}  {:>7}  {}\n", i + 1, channels, config.d_inner(channels), layers[i]["expansion"].get<std::string>());
  }
  fmt::print("\nan input of {0} x {0} pixels (--size):\n", options.size);
  fmt::print("  regions       {} ({} left after fusion), {} tokens in the first layer\n", f32.regions, f32.regions_left,
             f32.first_tokens);
  fmt::print("  forward pass  {:.2f} G multiply-accumulates = {:.2f} GFLOP\n", f32.multiply_accumulates / 1e9,
             2.0 * f32.multiply_accumulates / 1e9);
  fmt::print("  memory        inference {} fp32, {} bf16; training step {} fp32, {} bf16 (estimates)\n",
             byte_size(f32.inference_bytes), byte_size(bf16.inference_bytes), byte_size(f32.training_bytes),
             byte_size(bf16.training_bytes));
  return kDone;
}

int inspect_weights(const InspectOptions& options) {
  const io::SafetensorsHeader header = io::read_safetensors_header(options.input);
  int64_t parameters = 0;
  for (const io::SafetensorsEntry& entry : header.tensors) parameters += entry.shape.numel();
  if (options.json) {
    nlohmann::ordered_json tensors = nlohmann::ordered_json::array();
    for (const io::SafetensorsEntry& entry : header.tensors) {
      tensors.push_back({{"name", entry.name},
                         {"dtype", to_string(entry.dtype)},
                         {"shape", std::vector<int64_t>(entry.shape.begin(), entry.shape.end())}});
    }
    fmt::print("{}\n", nlohmann::ordered_json{{"parameters", parameters}, {"tensors", tensors}}.dump());
    return kDone;
  }
  fmt::print("{}: {} tensors, {} values\n", options.input, header.tensors.size(), parameters);
  for (const io::SafetensorsEntry& entry : header.tensors) {
    fmt::print("  {:<48} {:>5}  {}\n", entry.name, to_string(entry.dtype), entry.shape.str());
  }
  return kDone;
}

int inspect_slide_file(const InspectOptions& options) {
  const io::SlideInfo info = io::inspect_slide(options.input);
  if (options.json) {
    nlohmann::ordered_json levels = nlohmann::ordered_json::array();
    for (const auto& level : info.levels) {
      levels.push_back({{"width", level.width}, {"height", level.height}, {"downsample", level.downsample}});
    }
    nlohmann::ordered_json line = {{"format", info.format},
                                   {"width", info.width},
                                   {"height", info.height},
                                   {"mpp", info.mpp ? nlohmann::ordered_json(*info.mpp) : nlohmann::ordered_json()},
                                   {"mpp_source", info.mpp_source},
                                   {"levels", levels}};
    fmt::print("{}\n", line.dump());
    return kDone;
  }
  fmt::print("{}: {}, {} x {} pixels, {}\n", options.input, info.format, info.width, info.height,
             info.mpp ? fmt::format("{:.4g} um per pixel (from {})", *info.mpp, info.mpp_source)
                      : std::string("no physical resolution in the file (slides: give --slide-mpp)"));
  for (size_t i = 0; i < info.levels.size(); ++i) {
    const auto& level = info.levels[i];
    fmt::print("  level {}: {} x {}, {:.4g} times down{}\n", i, level.width, level.height, level.downsample,
               info.mpp ? fmt::format(", {:.4g} um per pixel", *info.mpp * level.downsample) : std::string());
  }
  if (info.mpp) {
    fmt::print("  at --mpp {:g}: {:.0f} x {:.0f} pixels\n", options.mpp, static_cast<double>(info.width) * *info.mpp / options.mpp,
               static_cast<double>(info.height) * *info.mpp / options.mpp);
  }
  return kDone;
}

int run_inspect(const InspectOptions& options) {
  namespace fs = std::filesystem;
  if (is_model_name(options.input)) return inspect_model(named_config(options.input, 1000), options);
  PM_CHECK(fs::exists(options.input), IoError, "{}: there is no such file or folder, and no model of that name (6m, 21m, nano)",
           options.input);
  if (fs::is_directory(options.input)) {
    PM_CHECK(fs::exists(options.input + "/config.json"), IoError,
             "{}: is no model folder (config.json and model.safetensors); name one file to see a slide", options.input);
    Context host(make_backend(Device::cpu()));
    return inspect_model(io::read_model(host, options.input, DType::f32).config(), options);  // the weights are checked too
  }
  if (fs::path(options.input).extension() == ".json") return inspect_model(io::read_model_config(options.input), options);
  if (fs::path(options.input).extension() == ".safetensors") return inspect_weights(options);
  return inspect_slide_file(options);
}

}  // namespace

void add_inspect(CLI::App& app, Command& command) {
  auto options = std::make_shared<InspectOptions>();
  CLI::App* verb = app.add_subcommand("inspect", "Describe a slide (size, levels, um per pixel) or a model (parameters, FLOPs, memory)");
  verb->add_option("INPUT", options->input, "slide or image; model folder, config.json or .safetensors; or 6m / 21m / nano")->required();
  verb->add_option("--size", options->size, "models: side of the square input that costs are given for, pixels")
      ->capture_default_str()
      ->check(CLI::Range(int64_t{1}, kMaxSide))
      ->type_name("PIXELS");
  verb->add_option("--mpp", options->mpp, "slides: micrometres per pixel that the network would see")
      ->capture_default_str()
      ->check(positive_number())
      ->type_name("UM");
  verb->add_flag("--json", options->json, "one JSON object on stdout");
  verb->callback([options, &command] { command.exit_code = run_inspect(*options); });
}

}  // namespace pm::app
