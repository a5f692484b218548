// Predictions of held-out slides: averaged per case, as tables and as figures.
#pragma once
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "apps/finetune_task.h"
#include "apps/predict.h"
#include "io/data/csv.h"

namespace pm::app {

struct SlidePrediction {
  int64_t slide = 0;  // index into the cohort
  double loss = 0.0;
  std::vector<double> probabilities;  // classes, or hazards of the time bins
  double risk = 0.0;                  // survival
};

// The mean over a case's slides.
struct CasePrediction {
  std::string case_id;
  int64_t slides = 0;
  std::vector<double> probabilities;
  double risk = 0.0;
  int64_t label = 0;  // class
  double survival_months = 0.0;
  bool censored = false;
};

// In the order of the cohort's cases.
std::vector<CasePrediction> average_by_case(const io::Cohort& cohort, const std::vector<SlidePrediction>& slides);

// One row per case: fold, case_id, slides, then Y, Y_hat, p_0.. or risk, survival_months, censorship, hazard_0..: what
// `evaluate` reads. With a line of column names.
std::string case_table(const Task& task, const std::string& fold, const std::vector<CasePrediction>& cases);
// The same per slide, with slide_id and loss.
std::string slide_table(const Task& task, const io::Cohort& cohort, const std::string& fold,
                        const std::vector<SlidePrediction>& slides);
// Tables of the same columns joined, the line of column names once.
std::string join_tables(const std::vector<std::string>& tables);

// Figures of held-out cases, by name: cases, loss, and what the task is judged by.
nlohmann::ordered_json figures(const Task& task, const std::vector<SlidePrediction>& slides,
                               const std::vector<CasePrediction>& cases);

// What `evaluate --json` says of predictions.csv, with 95 % intervals from resampled cases and without curves and folds;
// {"undefined": why} where there is nothing to judge by, such as a single class. Figures that are undefined are null.
nlohmann::ordered_json pooled_figures(const io::CsvTable& predictions, uint64_t seed);

}  // namespace pm::app
