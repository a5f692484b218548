// finetune --check: a dry run that reads what a run would read and says what it would learn from.
#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "apps/finetune_cohort.h"
#include "apps/finetune_task.h"
#include "engine/core/check.h"

namespace pm::app {
namespace {

using Json = nlohmann::ordered_json;

struct Check {
  io::Cohort cohort;
  std::vector<io::Fold> folds;
  io::LabelAudit audit;
  OpenedSlides opened;
  double seconds = 0.0;              // opening them
  std::vector<std::string> refused;  // why a run would not start
  std::vector<std::string> remarks;

  bool survival() const { return cohort.outcome == io::Outcome::survival; }
};

// Slides that are not there: a run refuses their table.
void look_for_missing(const FinetuneOptions& options, Check& check) {
  int64_t nameless = 0;
  for (const io::SlideRow& row : check.cohort.slides()) {
    if (!row.path.empty()) continue;
    ++nameless;
    if (!options.columns.slides.empty()) {
      check.opened.problems.push_back(
          {row.slide_id, "", true, fmt::format("{}: there is no slide of that name", options.columns.slides)});
    }
  }
  if (nameless > 0 && options.columns.slides.empty()) {
    check.refused.push_back(
        "the table names no files: --slides DIR says where they are (found by slide id, or by case id)");
  } else if (nameless > 0) {
    check.refused.push_back(
        fmt::format("slides that are not in {}: {}; --skip-missing leaves them out", options.columns.slides, nameless));
  }
}

void look_at_slides(const FinetuneOptions& options, Check& check) {
  const double start = now_seconds();
  check.opened = open_slides(options, check.cohort);
  check.seconds = now_seconds() - start;
  if (const std::string remark = unknown_resolution(check.opened, options); !remark.empty())
    check.remarks.push_back(remark);
  look_for_missing(options, check);
  if (!check.refused.empty()) return;
  const auto missing = std::count_if(check.cohort.slides().begin(), check.cohort.slides().end(),
                                     [](const io::SlideRow& row) { return !std::filesystem::exists(row.path); });
  if (missing > 0) {
    check.refused.push_back(
        fmt::format("files that are not there: {}; --skip-missing leaves their slides out", missing));
  } else if (check.opened.sizes.empty()) {
    check.refused.push_back("no slide can be opened");
  }
}

// What each fold would stumble over.
void look_at_folds(const FinetuneOptions& options, Check& check) {
  for (const io::Fold& fold : check.folds) {
    const std::string place = fold.name.empty() ? "" : fmt::format("fold {}: ", fold.name);
    try {
      make_task(options, check.cohort, fold.train);
    } catch (const IoError& error) {
      check.refused.push_back(place + error.what());
      continue;
    }
    const auto usable = [&](const std::vector<int64_t>& members) {
      return std::any_of(members.begin(), members.end(),
                         [&](int64_t slide) { return !check.opened.unusable.contains(slide); });
    };
    if (check.opened.sizes.empty()) continue;  // said once for all
    if (!usable(fold.train)) check.refused.push_back(place + "no training slide can be opened");
    if (!fold.held_out().empty() && !usable(fold.held_out()))
      check.remarks.push_back(place + "no held-out slide can be opened: nothing to judge by");
  }
}

const SlideSize* largest_of(const std::vector<SlideSize>& sizes) {
  const auto largest = std::max_element(sizes.begin(), sizes.end(), [](const SlideSize& a, const SlideSize& b) {
    return a.width * a.height < b.width * b.height;
  });
  return largest == sizes.end() ? nullptr : &*largest;
}

// ---------------------------------------------------------------- printed

void print_sets(const Check& check) {
  const std::vector<std::string> names = [&] {
    if (!check.survival()) return check.cohort.table.class_names;
    std::vector<std::string> bins;
    for (int64_t i = 0; i < kSurvivalBins; ++i) bins.push_back(fmt::format("bin {}", i + 1));
    return bins;
  }();
  size_t first = 12, wide = 10;
  for (const std::string& name : names) wide = std::max(wide, name.size());
  for (const io::Fold& fold : check.folds)
    first = std::max(first, std::string("fold , validation").size() + fold.name.size());
  fmt::print("\n{:<{}}  {:>6}  {:>6}", "", first, "cases", "slides");
  if (check.survival()) fmt::print("  {:>6}", "events");
  for (const std::string& name : names) fmt::print("  {:>{}}", name, wide);
  fmt::print("{}\n", check.survival() ? "   cases (events)" : "   cases");
  for_sets(check.audit, has_folds(check.folds), [&](const std::string& name, const io::SetAudit& set) {
    fmt::print("{:<{}}  {:>6}  {:>6}", name, first, set.cases, set.slides);
    if (check.survival()) fmt::print("  {:>6}", set.events);
    for (size_t i = 0; i < names.size(); ++i) {
      if (!check.survival()) fmt::print("  {:>{}}", set.class_cases[i], wide);
      if (check.survival() && i < set.bin_cases.size())
        fmt::print("  {:>{}}", fmt::format("{} ({})", set.bin_cases[i], set.bin_events[i]), wide);
    }
    fmt::print("\n");
  });
  for (const io::FoldAudit& fold : check.audit.folds) {
    if (fold.unused_cases > 0)
      fmt::print("{:<{}}  {:>6}\n", fmt::format("fold {}, unused", fold.name), first, fold.unused_cases);
  }
  for (const io::FoldAudit& fold : check.audit.folds) {
    if (fold.cuts.empty()) continue;
    fmt::print("{}{}time bins cut at {:.4g} months\n", &fold == &check.audit.folds[0] ? "\n" : "",
               fold.name.empty() ? "" : fmt::format("fold {}: ", fold.name), fmt::join(fold.cuts, ", "));
  }
}

void print_text(const FinetuneOptions& options, const Check& check) {
  const io::SlideTable& table = check.cohort.table;
  fmt::print("table    {}: {} slides of {} cases{}\n", table.file, table.rows.size(), check.cohort.cases.size(),
             table.case_column.empty() ? "" : fmt::format(" (column {})", table.case_column));
  if (check.survival()) {
    fmt::print("learns   survival from {} and {}: {} events\n", table.time_column, table.event_column,
               check.audit.all.events);
  } else {
    fmt::print("learns   {} classes from {}: {}\n", table.class_names.size(), table.label_column,
               fmt::join(table.class_names, ", "));
  }
  if (const std::string left_out = skipped_rows(table); !left_out.empty()) fmt::print("rows     {}\n", left_out);
  std::string formats;
  for (const auto& [format, count] : check.opened.formats)
    formats += fmt::format("{}{} {}", formats.empty() ? "" : ", ", count, format);
  if (check.opened.sizes.empty() && check.opened.problems.empty()) {
    fmt::print("slides   the table names none\n");
  } else {
    fmt::print("slides   {} of {} can be opened{} ({})\n", check.opened.sizes.size(), table.rows.size(),
               formats.empty() ? "" : ": " + formats, duration(check.seconds));
  }
  if (const SlideSize* largest = largest_of(check.opened.sizes)) {
    const std::string resolution =
        check.opened.as_they_are > 0 ? "" : fmt::format(" at {:g} um per pixel", options.load.mpp);
    fmt::print("largest  {} x {} pixels{}: {}\n", largest->width, largest->height, resolution, largest->slide_id);
  }
  print_sets(check);
  if (!check.opened.problems.empty()) fmt::print("\nslides that cannot be used\n");
  for (const io::SlideProblem& problem : check.opened.problems)
    fmt::print("  {}: {}\n", problem.slide_id, problem.reason);
  if (!check.remarks.empty()) fmt::print("\nworth knowing\n");
  for (const std::string& remark : check.remarks) fmt::print("  {}\n", remark);
  fmt::print("\n");
  for (const std::string& reason : check.refused) fmt::print("a run would not start: {}\n", reason);
  if (!check.refused.empty()) return;
  const size_t lost = check.opened.problems.size();
  fmt::print("{}\n", lost == 0 ? "a run would start, with every slide"
                               : fmt::format("a run would start, without the {} that cannot be used",
                                             lost == 1 ? "slide" : fmt::format("{} slides", lost)));
}

Json set_json(const Check& check, const io::SetAudit& set) {
  Json json = {{"cases", set.cases}, {"slides", set.slides}};
  if (check.survival()) {
    json["events"] = set.events;
    json["bin_cases"] = set.bin_cases;
    json["bin_events"] = set.bin_events;
  } else {
    json["class_cases"] = set.class_cases;
    json["class_slides"] = set.class_slides;
  }
  return json;
}

void print_line(const Json& line) { fmt::print("{}\n", line.dump(-1, ' ', false, Json::error_handler_t::replace)); }

void print_json(const FinetuneOptions& options, const Check& check) {
  const io::SlideTable& table = check.cohort.table;
  Json head = {{"table", table.file}, {"task", check.survival() ? "survival" : "classification"}};
  if (check.survival()) {
    head["time_column"] = table.time_column;
    head["event_column"] = table.event_column;
  } else {
    head["label_column"] = table.label_column;
    head["class_names"] = table.class_names;
  }
  head.update(set_json(check, check.audit.all));
  head["rows_left_out"] = Json::array();
  for (const io::SkippedRow& row : table.skipped) {
    head["rows_left_out"].push_back(
        {{"row", row.row}, {"case_id", row.case_id}, {"slide_id", row.slide_id}, {"reason", row.reason}});
  }
  print_line(head);
  for (const io::FoldAudit& fold : check.audit.folds) {
    Json line = {{"fold", fold.name}};
    if (check.survival()) line["cuts"] = fold.cuts;
    line["train"] = set_json(check, fold.train);
    line["val"] = set_json(check, fold.val);
    line["test"] = set_json(check, fold.test);
    line["unused_cases"] = fold.unused_cases;
    print_line(line);
  }
  for (const io::SlideProblem& problem : check.opened.problems)
    print_line({{"slide_id", problem.slide_id}, {"path", problem.path}, {"error", problem.reason}});
  Json last = {{"check", check.refused.empty() ? "pass" : "fail"},
               {"opened", check.opened.sizes.size()},
               {"failed", check.opened.unusable.size()},
               {"read_as_they_are", check.opened.as_they_are},
               {"formats", check.opened.formats},
               {"mpp", options.load.mpp}};
  if (const SlideSize* largest = largest_of(check.opened.sizes)) {
    last["largest"] = {{"slide_id", largest->slide_id}, {"width", largest->width}, {"height", largest->height}};
  }
  last["remarks"] = check.remarks;
  last["refused"] = check.refused;
  print_line(last);
}

}  // namespace

int check_finetune(const FinetuneOptions& options) {
  Check check;
  check.cohort = read_training_cohort(options, /*keep_missing=*/!options.columns.skip_missing);
  check.folds = training_folds(options, check.cohort);
  check.audit = io::audit_labels(check.cohort, check.folds, kSurvivalBins);
  check.remarks = check.audit.warnings;
  if (const std::string unknown = unknown_ids(check.folds); !unknown.empty()) check.remarks.push_back(unknown);
  look_at_slides(options, check);
  look_at_folds(options, check);
  std::string too_large;
  if (!check.opened.sizes.empty()) {
    const auto ctx = make_context(options.run);
    try {
      const std::string remark = check_memory(*ctx, options, check.opened);
      if (!remark.empty()) check.remarks.push_back(remark);
    } catch (const OutOfMemoryError& error) {
      too_large = error.what();
      check.refused.push_back(too_large);
    }
  }
  options.run.json ? print_json(options, check) : print_text(options, check);
  if (check.refused.empty()) return kDone;
  return !too_large.empty() && check.refused.size() == 1 ? kOutOfResources : kRejected;
}

}  // namespace pm::app
