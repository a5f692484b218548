// The cohort of a fine-tune: its table, its folds, and what opening every slide shows.
#pragma once
#include <fmt/format.h>

#include <map>
#include <set>
#include <string>
#include <vector>

#include "apps/finetune.h"
#include "apps/memory_check.h"
#include "io/data/cohort.h"
#include "io/report/run_report.h"

namespace pm::app {

// `keep_missing`: slides that are not there stay in the cohort (io::TableOptions). Throws IoError for a table that cannot be
// used.
io::Cohort read_training_cohort(const FinetuneOptions& options, bool keep_missing = false);
// As the options say; without folds one division that trains on all. Throws IoError.
std::vector<io::Fold> training_folds(const FinetuneOptions& options, const io::Cohort& cohort);

// Whether there are folds at all: the one division of a run without them trains on all and has no name.
inline bool has_folds(const std::vector<io::Fold>& folds) { return folds.size() > 1 || !folds[0].name.empty(); }

// fn(name, set) for the sets of an audit that have slides: the whole cohort, and of each fold training, validation and test.
template <typename Fn>
void for_sets(const io::LabelAudit& audit, bool divided, Fn&& fn) {
  const auto visit = [&](const std::string& name, const io::SetAudit& set) {
    if (set.slides > 0) fn(name, set);
  };
  visit("whole cohort", audit.all);
  for (const io::FoldAudit& fold : audit.folds) {
    if (!divided) break;
    visit(fmt::format("fold {}, training", fold.name), fold.train);
    visit(fmt::format("fold {}, validation", fold.name), fold.val);
    visit(fmt::format("fold {}, test", fold.name), fold.test);
  }
}

struct OpenedSlides {
  std::vector<SlideSize> sizes;            // of those that can be opened
  std::vector<int64_t> read_bytes;         // of the same: pixels in memory while reading one
  std::map<std::string, int64_t> formats;  // how many of each
  int64_t as_they_are = 0;                 // pictures without a physical resolution: --mpp changes nothing
  std::set<int64_t> unusable;              // the others
  std::vector<io::SlideProblem> problems;  // why
};

// Opens every slide that has a path.
OpenedSlides open_slides(const FinetuneOptions& options, const io::Cohort& cohort);

// A sentence about the pictures that are read as they are; empty when there is none.
std::string unknown_resolution(const OpenedSlides& opened, const FinetuneOptions& options);

// Whether the largest slide fits the device, and the memory for reading. Throws OutOfMemoryError; returns a remark where it
// depends on how much of the slide is background, else nothing.
std::string check_memory(Context& ctx, const FinetuneOptions& options, const OpenedSlides& opened);

// The label audit as the report shows it.
io::CohortAudit audit_for_report(const FinetuneOptions& options, const io::Cohort& cohort,
                                 const std::vector<io::Fold>& folds);
// "1 row is left out: no t_category (row 7: TCGA-A1)"; empty when there is none.
std::string skipped_rows(const io::SlideTable& table);

// A sentence about ids of split files that no row has; empty when there is none.
std::string unknown_ids(const std::vector<io::Fold>& folds);

// finetune --check: prints the audit, what is wrong, and whether a run would start. Writes nothing. Returns an exit code; throws
// as a run does where the table itself cannot be used.
int check_finetune(const FinetuneOptions& options);

}  // namespace pm::app
