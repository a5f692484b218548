// What the reports of trainings share: figures and curves from the files of a run folder.
#pragma once
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "io/report/run_report.h"

namespace pm::app {

// A training as its folder tells: metrics.jsonl, summary.json.
struct FoldSource {
  std::string name, folder;
};

// Nothing where the key is missing or holds no number.
std::optional<double> number_of(const nlohmann::ordered_json& json, const std::string& key);
// The lines of metrics.jsonl, without one that was cut off. Throws IoError.
std::vector<nlohmann::ordered_json> metrics_lines(const FoldSource& fold);
// One point per epoch from the lines of metrics.jsonl; `judge` is the figure of the validation that is drawn.
io::FoldCurves curves_of(const FoldSource& fold, const std::string& judge);
// The settings, the program and the machine, the command line. about: as config.json has it.
void add_run_entries(io::RunReport& report, const nlohmann::ordered_json& settings,
                     const nlohmann::ordered_json& about);

}  // namespace pm::app
