// evaluate: a CSV of predictions and what really happened, to metrics.
#include <algorithm>
#include <cmath>
#include <cstdio>

#include "apps/command_line.h"
#include "apps/evaluation.h"
#include "engine/core/check.h"

namespace pm::app {
namespace {

using Json = nlohmann::ordered_json;

constexpr int64_t kCurveLines = 8;  // times that the printed curve shows; --json has them all

struct EvaluateOptions {
  std::string file;
  EvaluationOptions evaluation;
  bool json = false;
};

std::string number(const Json& value, int digits = 4) {
  if (!value.is_number() || !std::isfinite(value.get<double>())) return "-";
  return fmt::format("{:.{}f}", value.get<double>(), digits);
}

// Small probabilities keep their leading digits.
std::string p_value(const Json& value) {
  if (!value.is_number() || !std::isfinite(value.get<double>())) return "-";
  return fmt::format("{:.3g}", value.get<double>());
}

// "c-index  0.6012   95 % interval 0.5512 to 0.6401   folds 0.6044 +- 0.0301"
void print_scalar(const Json& result, const std::string& name, const std::string& title) {
  std::string line = fmt::format("{:<18}{}", title, number(result[name]));
  if (result.contains("bootstrap")) {
    const Json& interval = result["bootstrap"][name];
    line += fmt::format("   {:.0f} % interval {} to {}", 100.0 * result["bootstrap"]["level"].get<double>(),
                        number(interval["low"]), number(interval["high"]));
  }
  if (result.contains("folds")) {
    line += fmt::format("   folds {} +- {}", number(result["fold_mean"][name]), number(result["fold_deviation"][name]));
  }
  fmt::print("{}\n", line);
}

size_t longest(const Json& rows, const char* key, size_t least) {
  for (const Json& row : rows) least = std::max(least, row[key].get<std::string>().size());
  return least;
}

void print_log_rank(const Json& test) {
  const Json& groups = test["groups"];
  fmt::print("\nlog-rank by {}: chi2 {}, {} {} of freedom, p {}\n", test["by"].get<std::string>(), number(test["chi2"]),
             test["df"].get<int64_t>(), test["df"] == 1 ? "degree" : "degrees", p_value(test["p"]));
  const size_t width = longest(groups, "group", 5);
  fmt::print("  {:<{}}  {:>6}  {:>6}  {:>9}  {:>15}\n", "group", width, "cases", "events", "expected",
             "median survival");
  for (const Json& group : groups) {
    fmt::print("  {:<{}}  {:>6}  {:>6}  {:>9}  {:>15}\n", group["group"].get<std::string>(), width,
               group["n"].get<int64_t>(), group["observed"].get<int64_t>(), number(group["expected"], 2),
               number(group["median_survival"], 2));
  }
}

// The curve (of one group) at a few times from its first to its last, evenly spread over the steps with events.
void print_curve(const std::vector<const Json*>& steps, const std::string& title) {
  std::vector<const Json*> with_events;
  for (const Json* step : steps) {
    if ((*step)["events"] != 0) with_events.push_back(step);
  }
  fmt::print("\nKaplan-Meier{}\n  {:>10}  {:>8}  {:>8}  {:>8}\n", title, "months", "at risk", "survival", "std err");
  const auto count = static_cast<int64_t>(with_events.size()), lines = std::min(count, kCurveLines);
  for (int64_t i = 0; i < lines; ++i) {
    const Json& step = *with_events[static_cast<size_t>(lines == 1 ? 0 : i * (count - 1) / (lines - 1))];
    fmt::print("  {:>10}  {:>8}  {:>8}  {:>8}\n", number(step["time"], 2), step["at_risk"].get<int64_t>(),
               number(step["survival"]), number(step["std_err"]));
  }
  if (lines == 0) fmt::print("  no event\n");
}

void print_survival(const Json& result) {
  print_scalar(result, "c_index", "c-index");
  fmt::print("{:<18}{} concordant, {} discordant, {} tied in risk, {} tied in time, {} in both\n", "pairs",
             result["concordant"].get<int64_t>(), result["discordant"].get<int64_t>(),
             result["tied_risk"].get<int64_t>(), result["tied_time"].get<int64_t>(),
             result["tied_both"].get<int64_t>());
  if (result.contains("folds")) {
    const size_t width = longest(result["folds"], "fold", 4);
    fmt::print("\n  {:<{}}  {:>6}  {:>6}  {:>8}  {:>12}\n", "fold", width, "cases", "events", "c-index", "log-rank p");
    for (const Json& fold : result["folds"]) {
      fmt::print("  {:<{}}  {:>6}  {:>6}  {:>8}  {:>12}\n", fold["fold"].get<std::string>(), width,
                 fold["n"].get<int64_t>(), fold["events"].get<int64_t>(), number(fold["c_index"]),
                 p_value(fold["median_split"]["p"]));
    }
  }
  print_log_rank(result["median_split"]);
  const auto by = result["median_split"]["by"].get<std::string>();
  std::vector<const Json*> steps;
  for (size_t i = 0; i < result["km"].size(); ++i) {  // groups follow each other
    const Json& step = result["km"][i];
    steps.push_back(&step);
    const bool last =
        i + 1 == result["km"].size() || (step.contains("group") && result["km"][i + 1]["group"] != step["group"]);
    if (!last) continue;
    const bool grouped = step.contains("group");
    print_curve(steps, grouped ? fmt::format(", {} = {}", by, step["group"].get<std::string>()) : "");
    steps.clear();
  }
}

void print_classification(const Json& result) {
  print_scalar(result, "top1", "top-1 accuracy");
  if (result.contains("top5")) fmt::print("{:<18}{}\n", "top-5 accuracy", number(result["top5"]));
  print_scalar(result, "macro_f1", "macro F1");
  print_scalar(result, "balanced_accuracy", "balanced accuracy");
  print_scalar(result, "auc", "AUC");
  if (result.contains("folds")) {
    const size_t width = longest(result["folds"], "fold", 4);
    fmt::print("\n  {:<{}}  {:>6}  {:>8}  {:>8}  {:>8}  {:>8}\n", "fold", width, "cases", "top-1", "macro F1",
               "balanced", "AUC");
    for (const Json& fold : result["folds"]) {
      fmt::print("  {:<{}}  {:>6}  {:>8}  {:>8}  {:>8}  {:>8}\n", fold["fold"].get<std::string>(), width,
                 fold["n"].get<int64_t>(), number(fold["top1"]), number(fold["macro_f1"]),
                 number(fold["balanced_accuracy"]), number(fold["auc"]));
    }
  }
  fmt::print("\n  {:<6}  {:>6}  {:>9}  {:>8}  {:>8}  {:>8}   predicted as 0, 1, ..\n", "class", "cases", "precision",
             "recall", "F1", "AUC");
  for (size_t k = 0; k < result["per_class"].size(); ++k) {
    const Json& own = result["per_class"][k];
    std::string row;
    for (const Json& count : result["confusion"][k]) row += fmt::format("{:>6}", count.get<int64_t>());
    fmt::print("  {:<6}  {:>6}  {:>9}  {:>8}  {:>8}  {:>8}   {}\n", k, own["support"].get<int64_t>(),
               number(own["precision"]), number(own["recall"]), number(own["f1"]), number(own["auc"]), row);
  }
}

int run_evaluate(const EvaluateOptions& options) {
  const bool survival = options.evaluation.task == "survival";
  PM_CHECK(survival || options.evaluation.group.empty(), UsageError, "--group goes with --task survival");
  const Evaluation evaluation = evaluate_predictions(io::read_csv(options.file), options.evaluation);
  for (const std::string& note : evaluation.notes) fmt::print(stderr, "note: {}\n", note);
  const Json& result = evaluation.result;
  if (options.json) {
    fmt::print("{}\n",
               result.dump(-1, ' ', false, Json::error_handler_t::replace));  // names in bytes that are no UTF-8
    return kDone;
  }
  const auto n = result["n"].get<int64_t>(), rows = result["rows"].get<int64_t>();
  fmt::print("{:<18}{}{}{}\n", "cases", n, rows == n ? "" : fmt::format(" ({} slides)", rows),
             survival ? fmt::format(", {} events", result["events"].get<int64_t>()) : "");
  survival ? print_survival(result) : print_classification(result);
  return kDone;
}

}  // namespace

void add_evaluate(CLI::App& app, Command& command) {
  auto options = std::make_shared<EvaluateOptions>();
  CLI::App* verb =
      app.add_subcommand("evaluate", "Predictions and what really happened, to metrics: per fold and pooled");
  verb->add_option(
          "FILE", options->file,
          "CSV of predictions. survival: risk (higher is worse), survival_months, censorship (1 = censored); "
          "classification: Y, Y_hat, p_0, p_1, ..; where there is a case_id, predictions of a case's slides are "
          "averaged; where there is a fold, folds are listed with their mean and deviation")
      ->required();
  verb->add_option("--task", options->evaluation.task, "survival or classification")
      ->required()
      ->check(CLI::IsMember({"survival", "classification"}));
  verb->add_option(
          "--group", options->evaluation.group,
          "survival: column that the log-rank test and the curves go by; else the test compares the cases above "
          "the median risk with the others")
      ->type_name("COLUMN");
  verb->add_option("--bootstrap", options->evaluation.bootstrap,
                   "95 % intervals from this many resamples of the cases; 0: none")
      ->capture_default_str()
      ->check(CLI::Range(int64_t{0}, int64_t{1'000'000}))
      ->type_name("N");
  verb->add_option("--seed", options->evaluation.seed, "seed of the resampling")->capture_default_str()->type_name("N");
  verb->add_flag("--json", options->json, "one JSON object on stdout, with every step of the curves");
  verb->footer(
      "c-index is Harrell's, as R's survival::concordance(reverse = TRUE) counts pairs. Means leave out classes and "
      "folds that\n"
      "do not have a value. JSON writes null for what the data do not define. With --group, log_rank and median_split "
      "both\n"
      "hold the test by that column, and every step of km says its group.");
  verb->callback([options, &command] { command.exit_code = run_evaluate(*options); });
}

}  // namespace pm::app
