#include "apps/json_config.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "engine/core/check.h"
#include "io/data/file.h"

namespace pm::app {
namespace {

bool names_option(const std::string& argument, const std::string& option) {
  return argument == option || argument.starts_with(option + "=");
}

// The options that a file asks for and the command line does not give.
std::vector<std::string> options_of(const std::string& file, const std::vector<std::string>& given) {
  const auto json = nlohmann::ordered_json::parse(io::read_file(file), nullptr, /*allow_exceptions=*/false);
  PM_CHECK(json.is_object(), ConfigError, "{}: --config needs a JSON object such as {{\"lr\": 1e-4, \"epochs\": 30}}",
           file);
  std::vector<std::string> options;
  for (const auto& [key, value] : json.items()) {
    PM_CHECK(!value.is_structured() && !value.is_null(), ConfigError,
             "{}: {} must be a number, a word, true or false, got {}", file, key, value.dump());
    std::string option = "--" + key;
    std::replace(option.begin(), option.end(), '_', '-');
    const bool overridden =
        std::any_of(given.begin(), given.end(), [&](const auto& a) { return names_option(a, option); });
    if (overridden || value == false) continue;
    if (value != true) option += "=" + (value.is_string() ? value.get<std::string>() : value.dump());
    options.push_back(option);
  }
  return options;
}

}  // namespace

std::vector<std::string> expand_config(const std::vector<std::string>& arguments) {
  std::vector<std::string> kept, files;
  for (size_t i = 0; i < arguments.size(); ++i) {
    if (arguments[i] == "--config" && i + 1 < arguments.size()) {
      files.push_back(arguments[++i]);
    } else if (names_option(arguments[i], "--config") && arguments[i] != "--config") {
      files.push_back(arguments[i].substr(std::string("--config=").size()));
    } else {
      kept.push_back(arguments[i]);
    }
  }
  std::vector<std::string> expanded = kept;
  for (const std::string& file : files) {
    const std::vector<std::string> options = options_of(file, kept);
    expanded.insert(expanded.end(), options.begin(), options.end());
  }
  return expanded;
}

}  // namespace pm::app
