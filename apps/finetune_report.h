// report.html of a fine-tune: what its folder holds, drawn.
#pragma once
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "apps/finetune.h"
#include "apps/report_parts.h"
#include "io/data/cohort.h"
#include "io/report/run_report.h"

namespace pm::app {

struct ReportSource {
  const io::Cohort& cohort;
  io::CohortAudit audit;
  std::vector<FoldSource> folds;
  nlohmann::ordered_json settings, about;  // of the training; program, device, arguments
  std::vector<io::SlideProblem> problems;  // slides that cannot be opened
};

// Writes report.html and its plots into the run folder, from the files of its finished folds. The slides with the largest loss
// are read once more for their pictures; one that is gone has none. Throws IoError when a file is missing or cannot be written.
void write_run_report(const FinetuneOptions& options, const ReportSource& source);

}  // namespace pm::app
