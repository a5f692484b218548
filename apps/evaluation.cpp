#include "apps/evaluation.h"

#include <cmath>

#include "apps/prediction_table.h"
#include "engine/core/check.h"
#include "engine/metrics/bootstrap.h"
#include "engine/metrics/summary.h"

namespace pm::app {
namespace {

using Json = nlohmann::ordered_json;

constexpr double kLevel = 0.95;
constexpr int64_t kMostGroups = 1000;  // the test solves a system of that size

std::vector<std::string> scalar_names(const EvaluationOptions& options) {
  if (options.task == "survival") return {"c_index"};
  return {"top1", "macro_f1", "balanced_accuracy", "auc"};
}

template <typename T>
std::vector<T> pick(const std::vector<T>& values, std::span<const int64_t> cases) {
  std::vector<T> picked;
  picked.reserve(cases.size());
  for (const int64_t i : cases) picked.push_back(values[static_cast<size_t>(i)]);
  return picked;
}

Json intervals_json(const EvaluationOptions& options, int64_t cases, const metrics::Statistics& statistics) {
  Rng rng(options.seed);
  const auto intervals = metrics::bootstrap_intervals(rng, cases, options.bootstrap, statistics, kLevel);
  Json json = {{"replicates", options.bootstrap}, {"level", kLevel}, {"seed", options.seed}};
  const std::vector<std::string> names = scalar_names(options);
  for (size_t k = 0; k < names.size(); ++k) {
    json[names[k]] = {{"low", intervals[k].low}, {"high", intervals[k].high}, {"undefined", intervals[k].undefined}};
  }
  return json;
}

// Mean and deviation over folds of every scalar metric.
void add_fold_summary(Evaluation& evaluation, const EvaluationOptions& options) {
  Json mean, deviation;
  for (const std::string& name : scalar_names(options)) {
    std::vector<double> values;
    for (const Json& fold : evaluation.result["folds"]) {
      if (std::isfinite(fold[name].get<double>())) {
        values.push_back(fold[name].get<double>());
      } else {
        evaluation.notes.push_back(
            fmt::format("fold {} has no {} and does not enter its mean", fold["fold"].get<std::string>(), name));
      }
    }
    const metrics::Summary summary = metrics::summarise(values);
    mean[name] = summary.mean;
    deviation[name] = summary.deviation;
  }
  evaluation.result["fold_mean"] = mean;
  evaluation.result["fold_deviation"] = deviation;
}

// ---------------------------------------------------------------- survival

Json pairs_json(const metrics::FollowUp& follow_up, std::span<const double> risk) {
  const metrics::Concordance c = metrics::concordance(follow_up, risk);
  return {{"n", follow_up.size()},      {"events", follow_up.events()}, {"c_index", c.index()},
          {"concordant", c.concordant}, {"discordant", c.discordant},   {"tied_risk", c.tied_risk},
          {"tied_time", c.tied_time},   {"tied_both", c.tied_both}};
}

Json curve_json(const std::vector<metrics::KaplanMeierStep>& curve, const std::string* group) {
  Json steps = Json::array();
  for (const metrics::KaplanMeierStep& step : curve) {
    Json json = {{"time", step.time},       {"survival", step.survival}, {"std_err", step.std_err},
                 {"at_risk", step.at_risk}, {"events", step.events},     {"censored", step.censored}};
    if (group != nullptr) json["group"] = *group;
    steps.push_back(std::move(json));
  }
  return steps;
}

Json log_rank_json(const metrics::FollowUp& follow_up, const std::vector<int64_t>& group, const std::string& by,
                   const std::vector<std::string>& names) {
  const metrics::LogRank test = metrics::log_rank(follow_up, group, static_cast<int64_t>(names.size()));
  Json groups = Json::array();
  for (size_t k = 0; k < names.size(); ++k) {
    const auto curve = metrics::kaplan_meier(follow_up.subset(metrics::cases_where(group, static_cast<int64_t>(k))));
    groups.push_back({{"group", names[k]},
                      {"n", test.n[k]},
                      {"observed", test.observed[k]},
                      {"expected", test.expected[k]},
                      {"median_survival", metrics::median_survival(curve)}});
  }
  const Json chi2 = test.degrees > 0 ? Json(test.chi2) : Json();
  return {{"by", by}, {"chi2", chi2}, {"df", test.degrees}, {"p", test.p}, {"groups", groups}};
}

Json median_split_json(const metrics::FollowUp& follow_up, std::span<const double> risk) {
  return log_rank_json(follow_up, metrics::median_split(risk), "median risk", {"low risk", "high risk"});
}

void add_groups(Evaluation& evaluation, const SurvivalTable& table, const EvaluationOptions& options) {
  const Levels& groups = table.groups;
  std::vector<int64_t> known;
  for (int64_t i = 0; i < table.follow_up.size(); ++i) {
    if (groups.of_case[static_cast<size_t>(i)] >= 0) known.push_back(i);
  }
  if (const auto left_out = table.follow_up.size() - static_cast<int64_t>(known.size()); left_out > 0) {
    evaluation.notes.push_back(fmt::format("{} no value in {}, left out of its log-rank test and curves",
                                           left_out == 1 ? "1 case has" : fmt::format("{} cases have", left_out),
                                           options.group));
  }
  const metrics::FollowUp follow_up = table.follow_up.subset(known);
  const std::vector<int64_t> of_case = pick(groups.of_case, known);
  Json test = log_rank_json(follow_up, of_case, options.group, groups.names);
  evaluation.result["log_rank"] = test;
  evaluation.result["median_split"] = std::move(test);  // one key that always holds the test, as `by` says
  Json curves = Json::array();
  for (int64_t k = 0; k < groups.count(); ++k) {
    const auto curve = metrics::kaplan_meier(follow_up.subset(metrics::cases_where(of_case, k)));
    for (Json& step : curve_json(curve, &groups.names[static_cast<size_t>(k)])) curves.push_back(std::move(step));
  }
  evaluation.result["km"] = std::move(curves);
}

Evaluation evaluate_survival(const io::CsvTable& csv, const EvaluationOptions& options) {
  const SurvivalTable table = read_survival_table(csv, options.group);
  if (!options.group.empty()) {
    PM_CHECK(table.groups.count() >= 2, IoError,
             "{}: column {} has {} value; a log-rank test compares at least two groups", csv.path, options.group,
             table.groups.count() == 1 ? "only one" : "no");
    PM_CHECK(table.groups.count() <= kMostGroups, IoError,
             "{}: column {} has {} different values, more than {}; a log-rank test compares groups of cases", csv.path,
             options.group, table.groups.count(), kMostGroups);
  }
  Evaluation evaluation;
  evaluation.result = pairs_json(table.follow_up, table.risk);
  evaluation.result["rows"] = table.rows;
  if (std::isnan(evaluation.result["c_index"].get<double>())) {
    evaluation.notes.push_back("the concordance index is undefined: no case outlived the event of another");
  }
  if (options.bootstrap > 0) {
    evaluation.result["bootstrap"] =
        intervals_json(options, table.follow_up.size(), [&](std::span<const int64_t> cases) {
          const metrics::FollowUp drawn = table.follow_up.subset(cases);
          return std::vector<double>{metrics::concordance(drawn, pick(table.risk, cases)).index()};
        });
  }
  if (options.group.empty()) {
    evaluation.result["median_split"] = median_split_json(table.follow_up, table.risk);
    evaluation.result["km"] = curve_json(metrics::kaplan_meier(table.follow_up), nullptr);
  } else {
    add_groups(evaluation, table, options);
  }
  if (evaluation.result["median_split"]["p"].is_number() &&
      std::isnan(evaluation.result["median_split"]["p"].get<double>())) {
    evaluation.notes.push_back(
        "the log-rank test is undefined: it needs two groups that are under observation at an event");
  }
  if (table.folds.count() > 0) {
    Json folds = Json::array();
    for (int64_t k = 0; k < table.folds.count(); ++k) {
      const std::vector<int64_t> cases = metrics::cases_where(table.folds.of_case, k);
      const metrics::FollowUp follow_up = table.follow_up.subset(cases);
      const std::vector<double> risk = pick(table.risk, cases);
      Json fold = {{"fold", table.folds.names[static_cast<size_t>(k)]}};
      fold.update(pairs_json(follow_up, risk));
      fold["median_split"] = median_split_json(follow_up, risk);
      folds.push_back(std::move(fold));
    }
    evaluation.result["folds"] = std::move(folds);
    add_fold_summary(evaluation, options);
  }
  return evaluation;
}

// ---------------------------------------------------------------- classification

std::vector<double> scalars(const metrics::ClassificationMetrics& m) {
  return {m.top1, m.macro_f1, m.balanced_accuracy, m.auc};
}

Json classification_json(const metrics::Predictions& cases) {
  const metrics::ClassificationMetrics m = metrics::classification_metrics(cases);
  Json json = {{"n", m.n}, {"classes", cases.classes}, {"top1", m.top1}};
  if (cases.classes > 5) json["top5"] = m.top5;  // of five classes the top five are all
  json["macro_f1"] = m.macro_f1;
  json["balanced_accuracy"] = m.balanced_accuracy;
  json["auc"] = m.auc;
  json["confusion"] = m.confusion;
  Json per_class = Json::array();
  for (size_t k = 0; k < m.per_class.size(); ++k) {
    const metrics::ClassMetrics& own = m.per_class[k];
    per_class.push_back({{"class", k},
                         {"support", own.support},
                         {"precision", own.precision},
                         {"recall", own.recall},
                         {"f1", own.f1},
                         {"auc", own.auc}});
  }
  json["per_class"] = std::move(per_class);
  return json;
}

Evaluation evaluate_classification(const io::CsvTable& csv, const EvaluationOptions& options) {
  const ClassificationTable table = read_classification_table(csv);
  Evaluation evaluation;
  evaluation.result = classification_json(table.cases);
  evaluation.result["rows"] = table.rows;
  for (const Json& own : evaluation.result["per_class"]) {
    if (own["support"] == 0) {
      evaluation.notes.push_back(fmt::format("no case has class {}: it has no recall and no AUC to enter the means",
                                             own["class"].get<int64_t>()));
    }
  }
  if (options.bootstrap > 0) {
    evaluation.result["bootstrap"] = intervals_json(options, table.cases.size(), [&](std::span<const int64_t> cases) {
      return scalars(metrics::classification_metrics(table.cases.subset(cases)));
    });
  }
  if (table.folds.count() > 0) {
    Json folds = Json::array();
    for (int64_t k = 0; k < table.folds.count(); ++k) {
      Json fold = {{"fold", table.folds.names[static_cast<size_t>(k)]}};
      fold.update(classification_json(table.cases.subset(metrics::cases_where(table.folds.of_case, k))));
      folds.push_back(std::move(fold));
    }
    evaluation.result["folds"] = std::move(folds);
    add_fold_summary(evaluation, options);
  }
  return evaluation;
}

}  // namespace

Evaluation evaluate_predictions(const io::CsvTable& table, const EvaluationOptions& options) {
  return options.task == "survival" ? evaluate_survival(table, options) : evaluate_classification(table, options);
}

}  // namespace pm::app
