// Tables of predictions: one row per slide, several rows per case, cases in folds. What `evaluate` reads.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "engine/metrics/classification.h"
#include "engine/metrics/survival.h"
#include "io/data/csv.h"

namespace pm::app {

// A column of names by case.
struct Levels {
  std::vector<std::string> names;  // distinct, numbers by value before words by letter
  std::vector<int64_t> of_case;    // index into names; -1 where the table has no value
  int64_t count() const { return static_cast<int64_t>(names.size()); }
};

struct SurvivalTable {
  int64_t rows = 0;
  metrics::FollowUp follow_up;  // by case, in the order of their first rows
  std::vector<double> risk;     // mean over a case's rows
  Levels folds;                 // no names without a column `fold`
  Levels groups;                // no names without a column to group by
};

struct ClassificationTable {
  int64_t rows = 0;
  metrics::Predictions
      cases;  // scores: mean over a case's rows; the class of a case of several rows has the highest mean
  Levels folds;
};

// Columns risk, survival_months (0 or more) and censorship (1 = censored, 0 = event seen); where there are such columns,
// rows of one case_id are one case, fold is its fold, and slide_id must be unique. `group`: name of a further column, or
// empty; an empty field or NA there is a missing value.
// Throws IoError naming row and column for a value that is missing, no number or out of range, for rows of a case that
// disagree about anything but the prediction, and for a table without rows or without an event.
SurvivalTable read_survival_table(const io::CsvTable& table, const std::string& group);

// Columns Y and Y_hat (classes 0, 1, ..) and p_0, p_1, .. (probabilities); case_id, slide_id and fold as above.
// Throws IoError as above, and where all cases have one class.
ClassificationTable read_classification_table(const io::CsvTable& table);

}  // namespace pm::app
