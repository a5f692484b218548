#include "io/data/cohort.h"

#include <algorithm>
#include <map>
#include <set>

#include "engine/core/check.h"

namespace pm::io {
namespace {

Outcome outcome_of(const SlideTable& table, Outcome wanted) {
  const char* survival =
      "survival needs the columns survival_months and censorship, or others named with --time-column and "
      "--event-column or --censorship-column";
  const char* classes = "classes need a column label, or one named with --label-column";
  PM_CHECK(wanted != Outcome::survival || table.has_survival, IoError, "{}: {}", table.file, survival);
  PM_CHECK(wanted != Outcome::classes || table.has_labels, IoError, "{}: {}", table.file, classes);
  if (wanted != Outcome::automatic) return wanted;
  if (table.has_labels) return Outcome::classes;
  PM_CHECK(table.has_survival, IoError, "{}: there is nothing to learn in the table: {}; {}", table.file, classes,
           survival);
  return Outcome::survival;
}

// Cases of some slides, each once, ascending.
std::vector<int64_t> cases_among(const Cohort& cohort, const std::vector<int64_t>& members) {
  std::set<int64_t> cases;
  for (const int64_t slide : members) cases.insert(cohort.case_of[static_cast<size_t>(slide)]);
  return {cases.begin(), cases.end()};
}

SetAudit audit_set(const Cohort& cohort, const std::vector<int64_t>& members, const std::vector<double>& cuts) {
  SetAudit audit;
  audit.slides = static_cast<int64_t>(members.size());
  audit.class_cases.resize(static_cast<size_t>(cohort.classes()));
  audit.class_slides.resize(static_cast<size_t>(cohort.classes()));
  if (cohort.table.has_survival) {
    audit.bin_cases.resize(cuts.size() + 1);
    audit.bin_events.resize(cuts.size() + 1);
  }
  for (const int64_t slide : members) {
    if (const auto& label = cohort.slides()[static_cast<size_t>(slide)].label)
      ++audit.class_slides[static_cast<size_t>(*label)];
  }
  for (const int64_t index : cases_among(cohort, members)) {
    const CohortCase& one = cohort.cases[static_cast<size_t>(index)];
    ++audit.cases;
    if (one.label) ++audit.class_cases[static_cast<size_t>(*one.label)];
    if (!one.survival_months) continue;
    const auto bin = static_cast<size_t>(survival_bin(*one.survival_months, cuts));
    ++audit.bin_cases[bin];
    if (one.censored) continue;
    ++audit.events;
    ++audit.bin_events[bin];
  }
  return audit;
}

void warn_about_set(const Cohort& cohort, const std::string& fold, const char* set, const SetAudit& audit,
                    bool training, std::vector<std::string>& warnings) {
  if (audit.slides == 0) return;
  const std::string place = fold.empty() ? "" : fmt::format("fold {}: ", fold);
  if (cohort.outcome == Outcome::classes) {
    for (size_t i = 0; i < audit.class_cases.size(); ++i) {
      if (audit.class_cases[i] > 0) continue;
      warnings.push_back(fmt::format("{}the {} set has no case of class {}", place, set, cohort.table.class_names[i]));
    }
  }
  if (cohort.outcome != Outcome::survival) return;
  if (audit.events == 0) {
    warnings.push_back(
        fmt::format("{}the {} set has no event{}", place, set, training ? "" : ": its concordance rests on nothing"));
    return;
  }
  for (size_t i = 0; training && i < audit.bin_events.size(); ++i) {
    if (audit.bin_events[i] > 0) continue;
    warnings.push_back(fmt::format("{}time bin {} of {} has no event in the {} set: too few different times of events",
                                   place, i + 1, audit.bin_events.size(), set));
  }
}

}  // namespace

Cohort read_cohort(const std::string& table, const TableOptions& options) {
  Cohort cohort;
  cohort.table = read_slide_table(table, options);
  cohort.outcome = outcome_of(cohort.table, options.label_column.empty() || options.outcome != Outcome::automatic
                                                ? options.outcome
                                                : Outcome::classes);
  std::map<std::string, int64_t> places;
  for (size_t i = 0; i < cohort.slides().size(); ++i) {
    const SlideRow& row = cohort.slides()[i];
    const auto [place, is_new] = places.emplace(row.case_id, static_cast<int64_t>(cohort.cases.size()));
    if (is_new) cohort.cases.push_back({row.case_id, {}, row.label, row.survival_months, row.censored});
    cohort.cases[static_cast<size_t>(place->second)].slides.push_back(static_cast<int64_t>(i));
    cohort.case_of.push_back(place->second);
  }
  return cohort;
}

std::vector<double> time_cuts(const Cohort& cohort, const std::vector<int64_t>& members, int64_t n_bins) {
  std::vector<SlideRow> rows;
  rows.reserve(members.size());
  for (const int64_t slide : members) rows.push_back(cohort.slides()[static_cast<size_t>(slide)]);
  return survival_cuts(rows, n_bins);
}

LabelAudit audit_labels(const Cohort& cohort, const std::vector<Fold>& folds, int64_t n_bins) {
  const bool survival = cohort.table.has_survival;
  std::vector<int64_t> everyone(cohort.slides().size());
  for (size_t i = 0; i < everyone.size(); ++i) everyone[i] = static_cast<int64_t>(i);
  const auto cuts_of = [&](const std::vector<int64_t>& members) {
    const bool event = std::any_of(members.begin(), members.end(), [&](int64_t slide) {
      return !cohort.slides()[static_cast<size_t>(slide)].censored;
    });
    return survival && event ? time_cuts(cohort, members, n_bins) : std::vector<double>();
  };
  LabelAudit audit;
  audit.all = audit_set(cohort, everyone, cuts_of(everyone));
  if (cohort.table.cases_from_slides && !folds.empty()) {
    audit.warnings.push_back(
        "the table has no column of cases: every slide counts as a case of its own, and slides of one patient may be "
        "in "
        "two sets");
  }
  std::map<int64_t, std::string> held_out;  // case -> first fold that holds it out
  int64_t repeated = 0;
  for (const Fold& fold : folds) {
    FoldAudit result;
    result.name = fold.name;
    result.cuts = cuts_of(fold.train);
    result.train = audit_set(cohort, fold.train, result.cuts);
    result.val = audit_set(cohort, fold.val, result.cuts);
    result.test = audit_set(cohort, fold.test, result.cuts);
    result.unused_cases = audit.all.cases - result.train.cases - result.val.cases - result.test.cases;
    warn_about_set(cohort, fold.name, "training", result.train, true, audit.warnings);
    warn_about_set(cohort, fold.name, "validation", result.val, false, audit.warnings);
    warn_about_set(cohort, fold.name, "test", result.test, false, audit.warnings);
    for (const int64_t index : cases_among(cohort, fold.held_out()))
      repeated += held_out.emplace(index, fold.name).second ? 0 : 1;
    audit.folds.push_back(std::move(result));
  }
  if (repeated > 0) {
    audit.warnings.push_back(
        fmt::format("{} cases are held out by more than one fold: pooled figures count them again", repeated));
  }
  return audit;
}

}  // namespace pm::io
