// A cohort: slides grouped by case, divided into training, validation and test sets, and an account of what each holds.
#pragma once
#include <cstdint>
#include <optional>
#include <stop_token>
#include <string>
#include <vector>

#include "io/data/slide_table.h"

namespace pm::io {

struct CohortCase {
  std::string id;
  std::vector<int64_t> slides;  // indices into Cohort::slides
  std::optional<int64_t> label;
  std::optional<double> survival_months;
  bool censored = false;
};

struct Cohort {
  SlideTable table;
  Outcome outcome = Outcome::none;  // what is learnt
  std::vector<CohortCase> cases;    // in the order of the table
  std::vector<int64_t> case_of;     // slide -> case

  const std::vector<SlideRow>& slides() const { return table.rows; }
  int64_t classes() const { return static_cast<int64_t>(table.class_names.size()); }
};

// Throws what read_slide_table throws, and IoError when the outcome asked for has no columns.
Cohort read_cohort(const std::string& table, const TableOptions& options = {});

// One division of the cohort. Members are indices into Cohort::slides(), ascending. No case is in two sets.
struct Fold {
  std::string name;  // the k of splits_k.csv, the value of the fold column, or 0, 1, ..
  std::vector<int64_t> train, val, test;
  int64_t unknown_ids = 0;  // of a split file, left out on request
  const std::vector<int64_t>& held_out() const { return test.empty() ? val : test; }
};

// `path`: a folder of splits_0.csv, splits_1.csv, .. (other files in it are ignored), or one such file. Columns train, val and,
// where there is one, test hold case ids or slide ids; which, is found out per file. Ids of rows that the table leaves out are
// passed over. Throws IoError naming file, row and column: a missing or unknown column, an unknown id (unless skip_unknown), an
// id twice, a case in two sets, no training or validation slide, no such file or folder.
std::vector<Fold> read_splits(const std::string& path, const Cohort& cohort, bool skip_unknown = false);
// Cases are dealt to `count` folds, each the validation set of one; per class or event status the numbers differ by at most
// one between folds, and so do the numbers of cases in all. Depends on the seed, the case ids and their outcomes alone, not on
// the order of the table. Throws IoError when there are fewer than two folds or fewer cases than folds.
std::vector<Fold> make_folds(const Cohort& cohort, int64_t count, uint64_t seed);
// By the table's fold column: each value is the validation set of one fold. Throws IoError when there is no such column, a
// value is missing, all are the same, or a case is in two folds.
std::vector<Fold> column_folds(const Cohort& cohort);

// Cuts of the time bins from the cases of `members` (see survival_cuts).
std::vector<double> time_cuts(const Cohort& cohort, const std::vector<int64_t>& members, int64_t n_bins);

// ---- label audit

struct SetAudit {
  int64_t cases = 0, slides = 0;
  int64_t events = 0;                 // cases with an event
  std::vector<int64_t> class_cases;   // per class
  std::vector<int64_t> class_slides;  // per class
  std::vector<int64_t> bin_cases;     // per time bin
  std::vector<int64_t> bin_events;    // per time bin
};

struct FoldAudit {
  std::string name;
  std::vector<double> cuts;  // of the time bins, months; from the training set
  SetAudit train, val, test;
  int64_t unused_cases = 0;  // in no set
};

struct LabelAudit {
  SetAudit all;  // bins by the cuts of the whole cohort
  std::vector<FoldAudit> folds;
  std::vector<std::string> warnings;  // sentences: a class that a set lacks, no event to validate on, ..
};

LabelAudit audit_labels(const Cohort& cohort, const std::vector<Fold>& folds, int64_t n_bins);

// ---- slide check

struct SlideCheckOptions {
  double mpp = 4.0;
  std::optional<double> slide_mpp;  // where the table says none
  bool decode = false;              // read every pixel that training would read, not the header alone
  int64_t threads = 0;              // 0: one per core
  std::stop_token stop;             // slides not reached are left out of the result
};

struct SlideCheck {
  int64_t slide = 0;  // index into the rows
  std::string error;  // empty: nothing is wrong
  std::string format;
  double mpp = 0.0;                  // of level 0; 0: unknown, the picture is read as it is
  int64_t width = 0, height = 0;     // of the picture that training would see
  int64_t read_bytes = 0;            // pixels in memory while reading it (SlidePlan)
  int64_t tiles = 0, bad_tiles = 0;  // with decode
};

// Opens every slide; what is wrong with one is its error, nothing is thrown for it. In the order of the rows.
std::vector<SlideCheck> check_slides(const std::vector<SlideRow>& rows, const SlideCheckOptions& options);

}  // namespace pm::io
