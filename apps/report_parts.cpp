#include "apps/report_parts.h"

#include <sstream>

#include "io/data/file.h"

namespace pm::app {

using Json = nlohmann::ordered_json;

namespace {

std::string text_of(const Json& value) { return value.is_string() ? value.get<std::string>() : value.dump(); }

}  // namespace

std::optional<double> number_of(const Json& json, const std::string& key) {
  return json.contains(key) && json[key].is_number() ? std::optional(json[key].get<double>()) : std::nullopt;
}

std::vector<Json> metrics_lines(const FoldSource& fold) {
  std::vector<Json> lines;
  std::istringstream file(io::read_file(fold.folder + "/metrics.jsonl"));
  for (std::string text; std::getline(file, text);) {
    Json line = Json::parse(text, nullptr, /*allow_exceptions=*/false);
    if (line.is_object()) lines.push_back(std::move(line));
  }
  return lines;
}

io::FoldCurves curves_of(const FoldSource& fold, const std::string& judge) {
  io::FoldCurves curves;
  curves.fold = fold.name;
  for (const Json& line : metrics_lines(fold)) {
    if (line.contains("event")) continue;
    const auto epoch = number_of(line, "epoch"), loss = number_of(line, "loss"), lr = number_of(line, "lr");
    if (!epoch) continue;
    if (loss) curves.train_loss.push_back({*epoch, *loss});
    if (lr) curves.learning_rate.push_back({*epoch, *lr});
    if (!line.contains("validation")) continue;
    const Json& validation = line["validation"];
    if (const auto value = number_of(validation, "loss")) curves.validation_loss.push_back({*epoch, *value});
    if (const auto value = number_of(validation, judge)) curves.validation_metric.push_back({*epoch, *value});
  }
  return curves;
}

void add_run_entries(io::RunReport& report, const Json& settings, const Json& about) {
  for (const auto& [name, value] : settings.items()) {
    if (!value.is_null() && !(value.is_string() && value.get<std::string>().empty()))
      report.settings.push_back({name, text_of(value)});
  }
  for (const auto& [name, value] : about.items()) {
    if (name != "arguments") report.versions.push_back({name, text_of(value)});
  }
  report.command_line = "pixel-mamba";
  for (const Json& argument : about.value("arguments", Json::array())) report.command_line += " " + text_of(argument);
}

}  // namespace pm::app
