#include "apps/json_config.h"

#include <algorithm>
#include <nlohmann/json.hpp>

namespace pm::app {
namespace {

class JsonConfig final : public CLI::Config {
 public:
  std::string to_config(const CLI::App*, bool, bool, std::string) const override { return "{}"; }

  std::vector<CLI::ConfigItem> from_config(std::istream& input) const override {
    const nlohmann::ordered_json json = nlohmann::ordered_json::parse(input, nullptr, /*allow_exceptions=*/false);
    if (!json.is_object()) throw CLI::ConversionError("--config: the file is not a JSON object");
    std::vector<CLI::ConfigItem> items;
    for (const auto& [key, value] : json.items()) {
      CLI::ConfigItem item;
      item.name = key;
      std::replace(item.name.begin(), item.name.end(), '_', '-');
      if (value.is_structured()) throw CLI::ConversionError("--config: " + key + " must be a number, a word or true/false");
      item.inputs = {value.is_string() ? value.get<std::string>() : value.dump()};
      items.push_back(std::move(item));
    }
    return items;
  }
};

}  // namespace

void add_json_config(CLI::App& command) {
  command.set_config("--config", "", "JSON file with values for these options; flags win")->type_name("FILE");
  command.config_formatter(std::make_shared<JsonConfig>());
  command.allow_config_extras(CLI::config_extras_mode::error);
}

}  // namespace pm::app
