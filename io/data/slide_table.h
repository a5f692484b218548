// Tables of slides: CSV with `path`, and `case_id`, `slide_id`, `label` | `survival_months` + `censorship`, `mpp` where known.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace pm::io {

struct SlideRow {
  std::string case_id;   // slide_id where the table has no such column
  std::string slide_id;  // file name without its ending where the table has no such column
  std::string path;      // relative paths are relative to the table's folder
  std::optional<double> mpp;
  std::optional<int64_t> label;           // class of a staging table, 0..
  std::optional<double> survival_months;  // follow-up time
  bool censored = false;                  // 1 in `censorship`: no event was seen
};

struct SlideTable {
  std::vector<SlideRow> rows;
  bool has_labels = false;    // column label
  bool has_survival = false;  // columns survival_months and censorship
};

// Throws IoError naming file, row and column for a missing column, an empty table, a value that is no number.
SlideTable read_slide_table(const std::string& path);

// What `infer` was given: one slide or image, a folder of them (by name, not recursive), or a CSV table.
// Throws IoError when there is no such file or nothing in it to read.
std::vector<SlideRow> list_slides(const std::string& input);

// The n_bins - 1 cut points between time bins: quantiles i / n_bins (linear interpolation) of uncensored times.
std::vector<double> survival_cuts(const std::vector<SlideRow>& rows, int64_t n_bins);
// Bin of a time: the number of cuts at or below it.
int64_t survival_bin(double months, const std::vector<double>& cuts);

}  // namespace pm::io
