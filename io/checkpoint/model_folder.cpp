#include "io/checkpoint/model_folder.h"

#include <filesystem>
#include <nlohmann/json.hpp>

#include "engine/core/check.h"
#include "engine/ops/backends.h"
#include "io/checkpoint/safetensors.h"
#include "io/config/model_config.h"
#include "io/data/atomic_file.h"

namespace pm::io {

PixelMamba read_model(Context& ctx, const std::string& folder, DType activation) {
  PM_CHECK(std::filesystem::is_directory(folder), IoError,
           "{}: there is no such model folder (a folder with config.json and model.safetensors, or the name 6m, 21m or "
           "nano)",
           folder);
  const std::string weights_file = folder + "/model.safetensors";
  PixelMamba model(ctx, read_model_config(folder + "/config.json"), activation, /*seed=*/0);
  Context host(make_backend(Device::cpu()));
  const auto weights = read_safetensors(host, weights_file);
  try {
    model.load(ctx, weights);
  } catch (const ConfigError& error) {
    throw ConfigError(fmt::format("{}: {}", weights_file, error.what()));
  }
  return model;
}

void write_model(const std::string& folder, const PixelMamba& model, FileOps& ops) {
  make_folder(folder);
  Context host(make_backend(Device::cpu()));
  write_safetensors(folder + "/model.safetensors", model.weights(host), {}, ops);
  write_file_atomically(folder + "/config.json", model_config_to_json(model.config()).dump(1) + "\n", ops);
}

}  // namespace pm::io
