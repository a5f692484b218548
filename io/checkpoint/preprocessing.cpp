#include "io/checkpoint/preprocessing.h"

#include <algorithm>
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
    } else if (key == "class_names") {
      const bool strings = value.is_array() &&
                           std::all_of(value.begin(), value.end(), [](const Json& name) { return name.is_string(); });
      PM_CHECK(strings, IoError, "{}: class_names: a list of names is needed, got {}", file, value.dump());
      result.class_names = value.get<std::vector<std::string>>();
    } else {
      PM_CHECK(key == "keep_background", IoError, "{}: {}: unknown key; the keys are class_names, keep_background, mpp",
               file, key);
      PM_CHECK(value.is_boolean(), IoError, "{}: keep_background: true or false is needed, got {}", file, value.dump());
      result.keep_background = value.get<bool>();
    }
  }
  return result;
}

void write_preprocessing(const std::string& folder, const Preprocessing& preprocessing, FileOps& ops) {
  Json json = {{"mpp", preprocessing.mpp}, {"keep_background", preprocessing.keep_background}};
  if (!preprocessing.class_names.empty()) json["class_names"] = preprocessing.class_names;
  write_file_atomically(file_in(folder), json.dump(1) + "\n", ops);
}

}  // namespace pm::io
