// The columns of a table that say what is to be learnt.
#pragma once
#include <optional>
#include <string>
#include <vector>

#include "io/data/csv.h"

namespace pm::io {

// Nothing, or what tables write for it: NA, N/A, nan, None, null, Unknown, Not Reported, [Not Available], ..
bool is_missing(const std::string& text);

struct LabelColumn {
  std::vector<std::optional<int64_t>> values;  // per row; nothing: missing
  std::vector<std::string> class_names;
};

// `strict`: a missing value or an unknown stage is refused too.
LabelColumn read_labels(const CsvTable& table, int64_t column, bool strict);

struct SurvivalColumns {
  int64_t time = -1, event = -1;
  bool days = false;    // the time is in days, not months
  bool events = false;  // 1 = event seen, not censored
};

// The columns of an endpoint ("" is overall survival); time is -1 where the table has none. Throws IoError when it has only one of
// the pair.
SurvivalColumns find_survival(const CsvTable& table, const std::string& endpoint);

struct Survival {
  double months = 0.0;
  bool censored = false;
};

// Nothing where a value is missing and `strict` is false.
std::optional<Survival> survival_at(const CsvTable& table, const SurvivalColumns& columns, int64_t row, bool strict);

}  // namespace pm::io
