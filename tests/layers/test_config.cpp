#include <nlohmann/json.hpp>

#include "io/config/model_config.h"
#include "layers/model/config.h"
#include "layers/model/cost.h"
#include "tests/support/test.h"

namespace pm::test {
namespace {

using Json = nlohmann::ordered_json;

Json small_config() {
  return {{"architecture", "pixel-mamba"},
          {"layers", {{{"channels", 3}, {"expansion", "horizontal_cat"}}, {{"channels", 6}}}},
          {"region_size", 4},
          {"head", "classification"},
          {"num_classes", 2}};
}

}  // namespace

TEST_CASE("the small network is small", "[cpu]") {
  const ModelConfig nano = named_config("nano", 4);
  CHECK(nano.region_size == 8);
  CHECK(nano.embedding_channels() == 48);
  CHECK(parameter_count(nano) < 150'000);
}

TEST_CASE("published tables have the published number of parameters", "[cpu]") {
  CHECK(parameter_count(named_config("6m", 0)) == 6'264'210);
  CHECK(parameter_count(named_config("6m", 1000)) == 6'649'210);
  CHECK(parameter_count(named_config("21m", 0)) == 20'559'186);
  CHECK(parameter_count(named_config("21m", 1000)) == 21'328'186);
  CHECK_THROWS_AS(named_config("7m", 0), ConfigError);
}

TEST_CASE("fusion merges alpha / n_layers of the first regions per layer, at most half", "[cpu]") {
  ModelConfig config = named_config("6m", 0);
  CHECK(config.fusion_k(1, 1) == 0);
  CHECK(config.fusion_k(30, 30) == 1);
  CHECK(config.fusion_k(31, 31) == 2);  // ceil(0.8 * 31 / 24)
  CHECK(config.fusion_k(400, 400) == 14);
  CHECK(config.fusion_k(400, 5) == 2);  // floor(5 / 2)
  config.fusion_count = FusionCount::current;
  CHECK(config.fusion_k(400, 30) == 1);
}

// By hand: 2 regions of 4 x 4 pixels and a CLS token, 3 channels, then 2 x (8 + 1) tokens of 6; d_inner 6 and 12; one chunk of
// 64 tokens a layer. Layer 1 holds 3 * 34 * 3 values and 2 * 6 * 33 floats, layer 2 what layer 1 keeps, 3 * 18 * 6 and
// 2 * 12 * 33.
TEST_CASE("a layer spares what the layer that holds most has more", "[cpu]") {
  ModelConfig config = io::model_config_from_json(small_config());
  const int64_t first = 3 * 34 * 3, second = 34 * 3 + 3 * 18 * 6, carried = 2 * 6 * 33;
  config.fusion_alpha = 0.0;  // no region is merged
  for (const DType dtype : {DType::f32, DType::bf16}) {
    const auto size = static_cast<int64_t>(size_of(dtype));
    const std::vector<int64_t> spare = spare_bytes(config, 2, 1, dtype);
    REQUIRE(spare.size() == 2);
    CHECK(spare[0] == (second - first) * size + carried * 4);
    CHECK(spare[1] == 0);
  }
}

TEST_CASE("config.json survives a round trip", "[cpu]") {
  ModelConfig config = named_config("21m", 7);
  config.divide_out = true;
  config.shared_conv = true;
  config.shift_pad = ShiftPad::zero;
  config.scan = ScanOrder::raster;
  config.fusion_count = FusionCount::current;
  const Json json = io::model_config_to_json(config);
  CHECK(io::model_config_to_json(io::model_config_from_json(json)) == json);
}

TEST_CASE("a wrong configuration is refused and the key named", "[cpu]") {
  CHECK_NOTHROW(io::model_config_from_json(small_config()));
  const auto refused = [](const std::string& key, const Json& value) {
    Json json = small_config();
    json[key] = value;
    try {
      io::model_config_from_json(json);
    } catch (const ConfigError& error) {
      return std::string(error.what()).find(key) != std::string::npos;
    }
    return false;
  };
  CHECK(refused("no_such_key", 1));
  CHECK(refused("region_size", 5));
  CHECK(refused("region_size", int64_t{1} << 60));
  CHECK(refused("expand", 1'000'000'000'000'000'000));
  CHECK(refused("num_classes", 1'000'000'000));
  CHECK(refused("layers", Json(70, {{"channels", 3}, {"expansion", "horizontal_avg"}})));  // 2^70 times narrower
  CHECK(refused("region_size", "16"));
  CHECK(refused("d_state", 0));
  CHECK(refused("d_state", 65));
  CHECK(refused("d_conv", 9));
  CHECK(refused("fusion_alpha", 1.5));
  CHECK(refused("scan", "spiral"));
  CHECK(refused("num_classes", 0));
  CHECK(refused("architecture", "resnet"));
  CHECK(refused("layers", Json::array()));
  CHECK(refused("layers", {{{"channels", 4}}}));
  CHECK(refused("layers", {{{"channels", 3}, {"expansion", "diagonal"}}}));
  CHECK(refused("layers", {{{"channels", 3}, {"expansion", "vertical_cat"}}, {{"channels", 3}}}));
}

}  // namespace pm::test
