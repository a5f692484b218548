#include "apps/finetune_predictions.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "apps/evaluation.h"
#include "engine/core/check.h"
#include "engine/metrics/classification.h"
#include "engine/metrics/survival.h"
#include "io/data/csv.h"

namespace pm::app {
namespace {

int64_t largest(const std::vector<double>& values) {
  return std::max_element(values.begin(), values.end()) - values.begin();
}

std::string outcome_columns(const Task& task) {
  std::string columns = task.head == Head::survival ? "risk,survival_months,censorship" : "Y,Y_hat";
  for (int64_t i = 0; i < task.outputs; ++i)
    columns += fmt::format(",{}_{}", task.head == Head::survival ? "hazard" : "p", i);
  return columns;
}

std::string outcome_values(const Task& task, const std::vector<double>& probabilities, double risk, int64_t label,
                           double months, bool censored) {
  std::string values = task.head == Head::survival ? fmt::format("{},{},{}", risk, months, censored ? 1 : 0)
                                                   : fmt::format("{},{}", label, largest(probabilities));
  for (const double p : probabilities) values += fmt::format(",{}", p);
  return values;
}

}  // namespace

std::vector<CasePrediction> average_by_case(const io::Cohort& cohort, const std::vector<SlidePrediction>& slides) {
  std::vector<CasePrediction> by_case(cohort.cases.size());
  for (const SlidePrediction& slide : slides) {
    CasePrediction& sum = by_case[static_cast<size_t>(cohort.case_of[static_cast<size_t>(slide.slide)])];
    sum.probabilities.resize(slide.probabilities.size());
    for (size_t i = 0; i < slide.probabilities.size(); ++i) sum.probabilities[i] += slide.probabilities[i];
    sum.risk += slide.risk;
    ++sum.slides;
  }
  std::vector<CasePrediction> result;
  for (size_t i = 0; i < by_case.size(); ++i) {
    CasePrediction& prediction = by_case[i];
    if (prediction.slides == 0) continue;
    const io::CohortCase& subject = cohort.cases[i];
    const auto count = static_cast<double>(prediction.slides);
    for (double& p : prediction.probabilities) p /= count;
    prediction.risk /= count;
    prediction.case_id = subject.id;
    prediction.label = subject.label.value_or(0);
    prediction.survival_months = subject.survival_months.value_or(0.0);
    prediction.censored = subject.censored;
    result.push_back(std::move(prediction));
  }
  return result;
}

std::string case_table(const Task& task, const std::string& fold, const std::vector<CasePrediction>& cases) {
  std::string text = "fold,case_id,slides," + outcome_columns(task) + "\n";
  for (const CasePrediction& c : cases) {
    text += fmt::format("{},{},{},{}\n", io::csv_field(fold), io::csv_field(c.case_id), c.slides,
                        outcome_values(task, c.probabilities, c.risk, c.label, c.survival_months, c.censored));
  }
  return text;
}

std::string slide_table(const Task& task, const io::Cohort& cohort, const std::string& fold,
                        const std::vector<SlidePrediction>& slides) {
  std::string text = "fold,case_id,slide_id,loss," + outcome_columns(task) + "\n";
  for (const SlidePrediction& s : slides) {
    const io::SlideRow& row = cohort.slides()[static_cast<size_t>(s.slide)];
    text += fmt::format("{},{},{},{},{}\n", io::csv_field(fold), io::csv_field(row.case_id),
                        io::csv_field(row.slide_id), s.loss,
                        outcome_values(task, s.probabilities, s.risk, row.label.value_or(0),
                                       row.survival_months.value_or(0.0), row.censored));
  }
  return text;
}

std::string join_tables(const std::vector<std::string>& tables) {
  std::string text;
  for (const std::string& table : tables) text += text.empty() ? table : table.substr(table.find('\n') + 1);
  return text;
}

namespace {

// null stands for a figure that these cases do not define, such as the concordance of two censored ones.
nlohmann::ordered_json number(double value) {
  return std::isfinite(value) ? nlohmann::ordered_json(value) : nlohmann::ordered_json();
}

void add_survival(nlohmann::ordered_json& json, const std::vector<CasePrediction>& cases) {
  std::vector<double> times, risks;
  std::vector<uint8_t> events;
  for (const CasePrediction& c : cases) {
    times.push_back(c.survival_months);
    events.push_back(c.censored ? 0 : 1);
    risks.push_back(c.risk);
  }
  const metrics::FollowUp follow_up(std::move(times), std::move(events));
  json["events"] = follow_up.events();
  json["c_index"] = number(metrics::concordance(follow_up, risks).index());
}

void add_classes(nlohmann::ordered_json& json, const Task& task, const std::vector<CasePrediction>& cases) {
  metrics::Predictions predictions;
  predictions.classes = task.outputs;
  for (const CasePrediction& c : cases) {
    predictions.label.push_back(c.label);
    predictions.predicted.push_back(largest(c.probabilities));
    predictions.score.insert(predictions.score.end(), c.probabilities.begin(), c.probabilities.end());
  }
  const metrics::ClassificationMetrics m = metrics::classification_metrics(predictions);
  json["macro_f1"] = number(m.macro_f1);
  json["balanced_accuracy"] = number(m.balanced_accuracy);
  json["auc"] = number(m.auc);
  json["top1"] = number(m.top1);
}

}  // namespace

nlohmann::ordered_json figures(const Task& task, const std::vector<SlidePrediction>& slides,
                               const std::vector<CasePrediction>& cases) {
  nlohmann::ordered_json json = {{"cases", cases.size()}, {"slides", slides.size()}};
  if (slides.empty()) return json;
  double loss = 0.0;
  bool finite = true;
  for (const SlidePrediction& slide : slides) {
    loss += slide.loss;
    finite =
        finite && std::isfinite(slide.loss) && std::isfinite(slide.risk) &&
        std::all_of(slide.probabilities.begin(), slide.probabilities.end(), [](double p) { return std::isfinite(p); });
  }
  json["loss"] = number(loss / static_cast<double>(slides.size()));
  if (!finite) return json;  // no order and no class can be read from them
  task.head == Head::survival ? add_survival(json, cases) : add_classes(json, task, cases);
  return json;
}

nlohmann::ordered_json pooled_figures(const io::CsvTable& predictions, uint64_t seed) {
  constexpr int64_t kResamples = 1000;
  EvaluationOptions options;
  options.task = predictions.find("risk") >= 0 ? "survival" : "classification";
  options.bootstrap = kResamples;
  options.seed = seed;
  try {
    nlohmann::ordered_json result = evaluate_predictions(predictions, options).result;
    for (const char* key : {"km", "folds", "fold_mean", "fold_deviation"}) result.erase(key);
    return nlohmann::ordered_json::parse(result.dump());  // numbers that are not finite become null
  } catch (const IoError& error) {
    return {{"undefined", error.what()}};
  }
}

}  // namespace pm::app
