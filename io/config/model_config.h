// config.json of a model folder <-> ModelConfig. Unknown keys are errors; keys left out take the published defaults.
#pragma once
#include <nlohmann/json_fwd.hpp>
#include <string>

#include "layers/model/config.h"

namespace pm::io {

// Throws ConfigError naming the key, its value and what would be right. The result is validated.
ModelConfig model_config_from_json(const nlohmann::ordered_json& json);
nlohmann::ordered_json model_config_to_json(const ModelConfig& config);

// Throws IoError when the file cannot be read or is no JSON, ConfigError for its contents.
ModelConfig read_model_config(const std::string& path);

}  // namespace pm::io
