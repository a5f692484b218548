#include "apps/finetune_cohort.h"

#include <algorithm>

#include "apps/finetune_task.h"
#include "apps/start_model.h"
#include "engine/core/check.h"
#include "io/config/model_config.h"

namespace pm::app {

io::Cohort read_training_cohort(const FinetuneOptions& options, bool keep_missing) {
  io::TableOptions columns = options.columns;
  columns.keep_missing = keep_missing;
  if (options.task == "classification") columns.outcome = io::Outcome::classes;
  const bool time_named = !columns.time_column.empty() && columns.label_column.empty();
  if (options.task == "survival" || (options.task == "auto" && time_named)) columns.outcome = io::Outcome::survival;
  io::Cohort cohort = io::read_cohort(options.table, columns);
  PM_CHECK(cohort.outcome == io::Outcome::classes || cohort.outcome == io::Outcome::survival, IoError,
           "{}: the table needs a column label (classes) or the columns survival_months and censorship (survival)",
           options.table);
  PM_CHECK(options.balance == 0.0 || cohort.outcome == io::Outcome::classes, UsageError,
           "--balance shows classes equally often; {} holds survival times", options.table);
  return cohort;
}

std::vector<io::Fold> training_folds(const FinetuneOptions& options, const io::Cohort& cohort) {
  if (options.splits == "table" || !options.columns.fold_column.empty()) return io::column_folds(cohort);
  if (!options.splits.empty()) return io::read_splits(options.splits, cohort, options.columns.skip_missing);
  if (options.folds > 0) return io::make_folds(cohort, options.folds, options.run.seed);
  io::Fold whole;
  for (size_t i = 0; i < cohort.slides().size(); ++i) whole.train.push_back(static_cast<int64_t>(i));
  return {whole};
}

OpenedSlides open_slides(const FinetuneOptions& options, const io::Cohort& cohort) {
  io::SlideCheckOptions check;
  check.mpp = options.load.mpp;
  check.slide_mpp = options.load.slide_mpp;
  std::vector<io::SlideRow> rows;
  std::vector<int64_t> index;
  OpenedSlides opened;
  for (size_t i = 0; i < cohort.slides().size(); ++i) {
    const io::SlideRow& row = cohort.slides()[i];
    if (row.path.empty()) {
      opened.unusable.insert(static_cast<int64_t>(i));
      continue;
    }
    rows.push_back(row);
    index.push_back(static_cast<int64_t>(i));
  }
  for (const io::SlideCheck& slide : io::check_slides(rows, check)) {
    const io::SlideRow& row = rows[static_cast<size_t>(slide.slide)];
    if (slide.error.empty()) {
      opened.sizes.push_back({row.slide_id, slide.width, slide.height});
      opened.read_bytes.push_back(slide.read_bytes);
      ++opened.formats[slide.format];
      if (slide.mpp == 0.0) ++opened.as_they_are;
      continue;
    }
    opened.problems.push_back({row.slide_id, row.path, true, slide.error});
    opened.unusable.insert(index[static_cast<size_t>(slide.slide)]);
  }
  return opened;
}

std::string unknown_ids(const std::vector<io::Fold>& folds) {
  const auto most = std::max_element(
      folds.begin(), folds.end(), [](const io::Fold& a, const io::Fold& b) { return a.unknown_ids < b.unknown_ids; });
  if (most->unknown_ids == 0) return "";
  return fmt::format("the splits name up to {} ids per fold that the table does not have: they are passed over",
                     most->unknown_ids);
}

std::string unknown_resolution(const OpenedSlides& opened, const FinetuneOptions& options) {
  if (opened.as_they_are == 0) return "";
  return fmt::format(
      "{} of {} pictures do not say how many micrometres a pixel is: they are read as they are, not at "
      "--mpp {:g} (--slide-mpp or a column mpp says it)",
      opened.as_they_are, opened.sizes.size(), options.load.mpp);
}

namespace {

// Reading ahead holds a slide at a time at least.
void require_read_memory(const FinetuneOptions& options, const ModelConfig& config, const OpenedSlides& opened) {
  io::LoaderOptions load = options.load;
  load.region_size = config.region_size;
  int64_t most = 0;
  const SlideSize* largest = nullptr;
  for (size_t i = 0; i < opened.sizes.size(); ++i) {
    const SlideSize& size = opened.sizes[i];
    const int64_t bytes =
        io::loader_bytes(load, size.width + 1, size.height + 1, opened.read_bytes[i], options.augment);
    if (bytes <= most) continue;
    most = bytes;
    largest = &size;
  }
  PM_CHECK(
      most <= load.max_bytes, OutOfMemoryError,
      "slide {}: reading its {} x {} pixels takes about {}, and --read-memory allows {}; --read-memory {}MB fits, or "
      "a coarser --mpp",
      largest->slide_id, largest->width, largest->height, byte_size(static_cast<double>(most)),
      byte_size(static_cast<double>(load.max_bytes)), most / 1'000'000 + 1);
}

}  // namespace

std::string check_memory(Context& ctx, const FinetuneOptions& options, const OpenedSlides& opened) {
  const ModelConfig config = initial_config(options.init);
  require_read_memory(options, config, opened);
  try {
    require_memory(ctx, config, activation_type(options.run, ctx.device()), opened.sizes, options.load.mpp);
  } catch (const OutOfMemoryError& error) {
    if (options.load.keep_background) throw;
    return fmt::format("this may not fit unless enough of it is background, which is left out: {}", error.what());
  }
  return "";
}

std::string skipped_rows(const io::SlideTable& table) {
  constexpr size_t kNamed = 3;
  if (table.skipped.empty()) return "";
  std::map<std::string, int64_t> reasons;
  for (const io::SkippedRow& row : table.skipped) ++reasons[row.reason];
  std::string text = fmt::format(
      "{} left out:", table.skipped.size() == 1 ? "1 row is" : fmt::format("{} rows are", table.skipped.size()));
  for (const auto& [reason, count] : reasons) {
    text += fmt::format("{} {}", text.back() == ':' ? "" : ",", reason);
    if (reasons.size() > 1) text += fmt::format(" ({})", count);
  }
  std::string named;
  for (size_t i = 0; i < std::min(kNamed, table.skipped.size()); ++i) {
    const io::SkippedRow& row = table.skipped[i];
    named += fmt::format("{}row {}: {}", named.empty() ? "" : ", ", row.row,
                         row.slide_id.empty() ? row.case_id : row.slide_id);
  }
  return fmt::format("{} ({}{})", text, named, table.skipped.size() > kNamed ? ", .." : "");
}

io::CohortAudit audit_for_report(const FinetuneOptions& options, const io::Cohort& cohort,
                                 const std::vector<io::Fold>& folds) {
  const io::LabelAudit audit = io::audit_labels(cohort, folds, kSurvivalBins);
  const bool survival = cohort.outcome == io::Outcome::survival;
  io::CohortAudit shown;
  shown.table = options.table;
  if (!survival) shown.count_names = cohort.table.class_names;
  for (int64_t i = 0; survival && i < kSurvivalBins; ++i)
    shown.count_names.push_back(fmt::format("time bin {}", i + 1));
  for_sets(audit, has_folds(folds), [&](const std::string& name, const io::SetAudit& set) {
    io::AuditRow row{name, set.cases, set.slides, {}, survival ? set.bin_cases : set.class_cases};
    if (survival) row.events = set.events;
    shown.rows.push_back(std::move(row));
  });
  for (const io::FoldAudit& fold : audit.folds) {
    if (fold.cuts.empty()) continue;
    shown.remarks.push_back(fmt::format("{}time bins are cut at {:.4g} months, from the events of the training set.",
                                        fold.name.empty() ? "" : fmt::format("Fold {}: ", fold.name),
                                        fmt::join(fold.cuts, ", ")));
  }
  if (const std::string unknown = unknown_ids(folds); !unknown.empty()) shown.remarks.push_back(unknown + ".");
  if (const std::string left_out = skipped_rows(cohort.table); !left_out.empty())
    shown.remarks.push_back(left_out + ".");
  for (const std::string& warning : audit.warnings) shown.remarks.push_back(warning + ".");
  return shown;
}

}  // namespace pm::app
