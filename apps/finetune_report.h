// report.html of a fine-tune: what its folder holds, drawn.
#pragma once
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "apps/finetune.h"
#include "io/data/cohort.h"
#include "io/report/run_report.h"

namespace pm::app {

// A fold as its folder tells: metrics.jsonl, summary.json.
struct FoldSource {
  std::string name, folder;
};

// Writes report.html and its plots into the run folder, from the files of its finished folds. `settings`: the training
// settings; `about`: program, device, arguments. Throws IoError when a file is missing or cannot be written.
void write_run_report(const FinetuneOptions& options, const std::vector<FoldSource>& folds,
                      const nlohmann::ordered_json& settings, const nlohmann::ordered_json& about,
                      const std::vector<io::SlideProblem>& problems, const io::CohortAudit& cohort);

}  // namespace pm::app
