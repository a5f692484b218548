// inspect: describes a slide, a model folder or a published model.
#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "apps/command_line.h"
#include "apps/peak_memory.h"
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
constexpr int64_t kMaxBatch = 100'000;

struct InspectOptions {
  std::string input;
  int64_t size = 4480, batch = 1, region_size = 0;
  double mpp = 4.0;
  bool json = false;
};

const char* head_name(Head head) {
  return head == Head::none ? "none" : head == Head::survival ? "survival" : "classification";
}

// Peak bytes of one pass over `batch` images.
struct Passes {
  int64_t inference, training;
};
Passes passes(const ModelConfig& config, const InspectOptions& options, Device device, DType activation) {
  PeakMemory memory(config, device, activation);
  return {memory.inference(options.batch, options.size, options.size),
          memory.training(options.batch, options.size, options.size)};
}
nlohmann::ordered_json to_json(const Passes& passes) {
  return {{"inference_bytes", passes.inference}, {"training_bytes", passes.training}};
}

int inspect_model(ModelConfig config, const InspectOptions& options) {
  if (options.region_size > 0) config.region_size = options.region_size;
  config.validate();
  const ModelCost cost = model_cost(config, options.size, options.size);
  const Passes f32 = passes(config, options, Device::cuda(), DType::f32);
  const Passes bf16 = passes(config, options, Device::cuda(), DType::bf16);
  const Passes cpu = passes(config, options, Device::cpu(), DType::f32);
  if (options.json) {
    nlohmann::ordered_json line = {
        {"parameters", parameter_count(config)},
        {"layers", config.n_layers()},
        {"embedding_channels", config.embedding_channels()},
        {"size", options.size},
        {"batch", options.batch},
        {"regions", cost.regions},
        {"regions_left", cost.regions_left},
        {"tokens", cost.first_tokens},
        {"multiply_accumulates", cost.multiply_accumulates},
        {"flops", 2.0 * cost.multiply_accumulates},
        {"memory",
         {{"cuda", {{"fp32", to_json(f32)}, {"tf32", to_json(f32)}, {"bf16", to_json(bf16)}}},
          {"cpu", {{"fp32", to_json(cpu)}}}}},
        {"config", io::model_config_to_json(config)}};
    fmt::print("{}\n", line.dump());
    return kDone;
  }
  fmt::print("{}: Pixel-Mamba, {} parameters, {} layers, embedding of {} values, head {} ({} outputs)\n", options.input,
             parameter_count(config), config.n_layers(), config.embedding_channels(), head_name(config.head),
             config.num_classes);
  fmt::print("regions of {0} x {0} pixels; d_state {1}, d_conv {2}, expand {3}\n\n", config.region_size, config.d_state,
             config.d_conv, config.expand);
  fmt::print("{:>5}  {:>8}  {:>7}  {}\n", "layer", "channels", "d_inner", "expansion");
  const nlohmann::ordered_json layers = io::model_config_to_json(config)["layers"];
  for (size_t i = 0; i < config.layers.size(); ++i) {
    const int64_t channels = config.layers[i].channels;
    fmt::print("{:>5}  {:>8}  {:>7}  {}\n", i + 1, channels, config.d_inner(channels),
               layers[i]["expansion"].get<std::string>());
  }
  fmt::print("\nan input of {0} x {0} pixels (--size):\n", options.size);
  fmt::print("  regions       {} ({} left after fusion), {} tokens in the first layer\n", cost.regions,
             cost.regions_left, cost.first_tokens);
  fmt::print("  forward pass  {:.2f} G multiply-accumulates = {:.2f} GFLOP\n", cost.multiply_accumulates / 1e9,
             2.0 * cost.multiply_accumulates / 1e9);
  const auto size = [](int64_t bytes) { return byte_size(static_cast<double>(bytes)); };
  fmt::print("\npeak memory, {} at a time (--batch):\n", options.batch);
  fmt::print("  {:<18}{:>12}  {:>13}\n", "", "inference", "training step");
  const auto print = [&](const char* name, const Passes& bytes) {
    fmt::print("  {:<18}{:>12}  {:>13}\n", name, size(bytes.inference), size(bytes.training));
  };
  print("GPU, fp32 or tf32", f32);
  print("GPU, bf16", bf16);
  print("CPU, fp32", cpu);
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
    fmt::print("  at --mpp {:g}: {:.0f} x {:.0f} pixels\n", options.mpp,
               static_cast<double>(info.width) * *info.mpp / options.mpp,
               static_cast<double>(info.height) * *info.mpp / options.mpp);
  }
  return kDone;
}

int run_inspect(const InspectOptions& options) {
  namespace fs = std::filesystem;
  if (is_model_name(options.input)) return inspect_model(named_config(options.input, 1000), options);
  PM_CHECK(fs::exists(options.input), IoError,
           "{}: there is no such file or folder, and no model of that name (6m, 21m, nano)", options.input);
  if (fs::is_directory(options.input)) {
    PM_CHECK(fs::exists(options.input + "/config.json"), IoError,
             "{}: is no model folder (config.json and model.safetensors); name one file to see a slide", options.input);
    Context host(make_backend(Device::cpu()));
    return inspect_model(io::read_model(host, options.input, DType::f32).config(),
                         options);  // the weights are checked too
  }
  if (fs::path(options.input).extension() == ".json")
    return inspect_model(io::read_model_config(options.input), options);
  if (fs::path(options.input).extension() == ".safetensors") return inspect_weights(options);
  return inspect_slide_file(options);
}

}  // namespace

void add_inspect(CLI::App& app, Command& command) {
  auto options = std::make_shared<InspectOptions>();
  CLI::App* verb = app.add_subcommand(
      "inspect", "Describe a slide (size, levels, um per pixel) or a model (parameters, FLOPs, memory)");
  verb->add_option("INPUT", options->input,
                   "slide or image; model folder, config.json or .safetensors; or 6m / 21m / nano")
      ->required();
  verb->add_option("--size", options->size, "models: side of the square input that costs are given for, pixels")
      ->capture_default_str()
      ->check(CLI::Range(int64_t{1}, kMaxSide))
      ->type_name("PIXELS");
  verb->add_option("--batch", options->batch, "models: images at a time that memory is given for")
      ->capture_default_str()
      ->check(CLI::Range(int64_t{1}, kMaxBatch))
      ->type_name("N");
  verb->add_option("--region-size", options->region_size, "models: pixels per side of a region instead of the model's")
      ->check(CLI::PositiveNumber)
      ->type_name("PIXELS");
  verb->add_option("--mpp", options->mpp, "slides: micrometres per pixel that the network would see")
      ->capture_default_str()
      ->check(positive_number())
      ->type_name("UM");
  verb->add_flag("--json", options->json, "one JSON object on stdout");
  verb->callback([options, &command] { command.exit_code = run_inspect(*options); });
}

}  // namespace pm::app
