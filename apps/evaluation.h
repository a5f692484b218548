// From a table of predictions to its metrics: pooled, per fold, with bootstrap intervals. One object, which `evaluate`
// prints and a report draws.
#pragma once
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "io/data/csv.h"

namespace pm::app {

struct EvaluationOptions {
  std::string task;  // survival | classification
  std::string
      group;  // survival: column that log-rank and curves go by; empty: the halves below and above the median risk
  int64_t bootstrap = 0;  // replicates; 0: no intervals
  uint64_t seed = 0;      // of the bootstrap
};

struct Evaluation {
  nlohmann::ordered_json result;   // null stands for what the data do not define
  std::vector<std::string> notes;  // what a reader of the numbers has to know
};

// Throws IoError for a table that cannot be evaluated (prediction_table.h).
Evaluation evaluate_predictions(const io::CsvTable& table, const EvaluationOptions& options);

}  // namespace pm::app
