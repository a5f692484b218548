#include "io/config/model_config.h"

#include <fmt/ranges.h>

#include <array>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>

#include "engine/core/check.h"

namespace pm::io {
namespace {

using Json = nlohmann::ordered_json;

template <typename Enum>
struct EnumName {
  const char* name;
  Enum value;
};

constexpr std::array<EnumName<Expansion>, 4> kExpansions = {{{"horizontal_cat", Expansion::horizontal_cat},
                                                             {"horizontal_avg", Expansion::horizontal_avg},
                                                             {"vertical_cat", Expansion::vertical_cat},
                                                             {"vertical_avg", Expansion::vertical_avg}}};
constexpr std::array<EnumName<FusionCount>, 2> kFusionCounts = {
    {{"initial", FusionCount::initial}, {"current", FusionCount::current}}};
constexpr std::array<EnumName<ShiftPad>, 2> kShiftPads = {
    {{"replicate", ShiftPad::replicate}, {"zero", ShiftPad::zero}}};
constexpr std::array<EnumName<ScanOrder>, 2> kScanOrders = {
    {{"boustrophedon", ScanOrder::boustrophedon}, {"raster", ScanOrder::raster}}};
constexpr std::array<EnumName<Head>, 3> kHeads = {
    {{"none", Head::none}, {"classification", Head::classification}, {"survival", Head::survival}}};

template <typename Names>
auto enum_from(const Json& value, const Names& names, const std::string& key) {
  std::string valid;
  for (const auto& entry : names) {
    if (value.is_string() && value.get<std::string>() == entry.name) return entry.value;
    valid += std::string(valid.empty() ? "" : ", ") + entry.name;
  }
  throw ConfigError(fmt::format("{}: {} is not valid; one of {}", key, value.dump(), valid));
}

template <typename Names, typename Enum>
const char* enum_name(const Names& names, Enum value) {
  for (const auto& entry : names) {
    if (entry.value == value) return entry.name;
  }
  return "?";
}

// Reads the keys of one object and remembers which were asked for.
class Reader {
 public:
  Reader(const Json& json, std::string where) : json_(json), where_(std::move(where)) {
    PM_CHECK(json.is_object(), ConfigError, "{}: an object is needed, got {}", where_.empty() ? "config" : where_,
             json.dump());
  }

  const Json* find(const std::string& key) {
    known_.insert(key);
    const auto it = json_.find(key);
    return it == json_.end() ? nullptr : &*it;
  }
  void integer(const std::string& key, int64_t& value) {
    if (const Json* found = find(key)) {
      PM_CHECK(found->is_number_integer(), ConfigError, "{}{}: a whole number is needed, got {}", where_, key,
               found->dump());
      value = found->get<int64_t>();
    }
  }
  void number(const std::string& key, double& value) {
    if (const Json* found = find(key)) {
      PM_CHECK(found->is_number(), ConfigError, "{}{}: a number is needed, got {}", where_, key, found->dump());
      value = found->get<double>();
    }
  }
  void boolean(const std::string& key, bool& value) {
    if (const Json* found = find(key)) {
      PM_CHECK(found->is_boolean(), ConfigError, "{}{}: true or false is needed, got {}", where_, key, found->dump());
      value = found->get<bool>();
    }
  }
  template <typename Names, typename Enum>
  void choice(const std::string& key, const Names& names, Enum& value) {
    if (const Json* found = find(key)) value = enum_from(*found, names, where_ + key);
  }
  void reject_unknown() const {
    for (const auto& [key, value] : json_.items()) {
      PM_CHECK(known_.contains(key), ConfigError, "{}{}: unknown key; the keys are {}", where_, key,
               fmt::join(known_, ", "));
    }
  }

 private:
  const Json& json_;
  std::string where_;
  std::set<std::string> known_;
};

LayerConfig layer_from_json(const Json& json, size_t index) {
  const std::string where = fmt::format("layers[{}].", index);
  Reader reader(json, where);
  LayerConfig layer;
  reader.integer("channels", layer.channels);
  if (const Json* expansion = reader.find("expansion"); expansion != nullptr && *expansion != "none") {
    layer.expansion = enum_from(*expansion, kExpansions, where + "expansion");
  }
  reader.reject_unknown();
  return layer;
}

}  // namespace

ModelConfig model_config_from_json(const Json& json) {
  Reader reader(json, "");
  ModelConfig config;
  if (const Json* architecture = reader.find("architecture")) {
    PM_CHECK(*architecture == "pixel-mamba", ConfigError, "architecture: only \"pixel-mamba\" is known, got {}",
             architecture->dump());
  }
  const Json* layers = reader.find("layers");
  PM_CHECK(layers != nullptr && layers->is_array(), ConfigError,
           "layers: a list of {{\"channels\": .., \"expansion\": ..}} is needed");
  for (size_t i = 0; i < layers->size(); ++i) config.layers.push_back(layer_from_json((*layers)[i], i));
  reader.integer("d_state", config.d_state);
  reader.integer("d_conv", config.d_conv);
  reader.integer("expand", config.expand);
  reader.integer("region_size", config.region_size);
  reader.number("fusion_alpha", config.fusion_alpha);
  reader.choice("fusion_count", kFusionCounts, config.fusion_count);
  reader.number("norm_eps", config.norm_eps);
  reader.boolean("divide_out", config.divide_out);
  reader.boolean("shared_conv", config.shared_conv);
  reader.choice("shift_pad", kShiftPads, config.shift_pad);
  reader.choice("scan", kScanOrders, config.scan);
  reader.choice("head", kHeads, config.head);
  if (config.head == Head::none) config.num_classes = 0;
  reader.integer("num_classes", config.num_classes);
  reader.reject_unknown();
  config.validate();
  return config;
}

Json model_config_to_json(const ModelConfig& config) {
  Json layers = Json::array();
  for (const LayerConfig& layer : config.layers) {
    layers.push_back({{"channels", layer.channels},
                      {"expansion", layer.expansion ? enum_name(kExpansions, *layer.expansion) : "none"}});
  }
  return {{"architecture", "pixel-mamba"},
          {"layers", layers},
          {"d_state", config.d_state},
          {"d_conv", config.d_conv},
          {"expand", config.expand},
          {"region_size", config.region_size},
          {"fusion_alpha", config.fusion_alpha},
          {"fusion_count", enum_name(kFusionCounts, config.fusion_count)},
          {"norm_eps", config.norm_eps},
          {"divide_out", config.divide_out},
          {"shared_conv", config.shared_conv},
          {"shift_pad", enum_name(kShiftPads, config.shift_pad)},
          {"scan", enum_name(kScanOrders, config.scan)},
          {"head", enum_name(kHeads, config.head)},
          {"num_classes", config.num_classes}};
}

ModelConfig read_model_config(const std::string& path) {
  std::ifstream file(path);
  PM_CHECK(file.good(), IoError, "{}: cannot be opened", path);
  Json json;
  try {
    json = Json::parse(file);
  } catch (const nlohmann::json::exception& error) {
    throw IoError(fmt::format("{}: not valid JSON: {}", path, error.what()));
  }
  try {
    return model_config_from_json(json);
  } catch (const ConfigError& error) {
    throw ConfigError(fmt::format("{}: {}", path, error.what()));
  }
}

}  // namespace pm::io
