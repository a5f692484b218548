#include "io/checkpoint/preprocessing.h"

#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "engine/core/check.h"
#include "io/data/atomic_file.h"
#include "io/data/file.h"

namespace pm::io {
namespace {

using Json = nlohmann::ordered_json;

std::string file_in(const std::string& folder) { return folder + "/preprocessing.json"; }

}  // namespace

std::optional<Preprocessing> read_preprocessing(const std::string& folder) {
  const std::string file = file_in(folder);
  if (!std::filesystem::exists(file)) return std::nullopt;
  const Json json = Json::parse(read_file(file), nullptr, /*allow_exceptions=*/false);
  PM_CHECK(json.is_object(), IoError, "{}: not valid JSON", file);
  Preprocessing result;
  for (const auto& [key, value] : json.items()) {
    if (key == "mpp") {
      PM_CHECK(value.is_number() && std::isfinite(value.get<double>()) && value.get<double>() > 0.0, IoError,
               "{}: mpp: micrometres per pixel are a number above 0, got {}", file, value.dump());
      result.mpp = value.get<double>();
    } else {
      PM_CHECK(key == "keep_background", IoError, "{}: {}: unknown key; the keys are keep_background, mpp", file, key);
      PM_CHECK(value.is_boolean(), IoError, "{}: keep_background: true or false is needed, got {}", file, value.dump());
      result.keep_background = value.get<bool>();
    }
  }
  return result;
}

void write_preprocessing(const std::string& folder, const Preprocessing& preprocessing, FileOps& ops) {
  const Json json = {{"mpp", preprocessing.mpp}, {"keep_background", preprocessing.keep_background}};
  write_file_atomically(file_in(folder), json.dump(1) + "\n", ops);
}

}  // namespace pm::io
