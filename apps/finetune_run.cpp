// A whole fine-tune: the cohort, its folds one after the other, what they say together.
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "apps/finetune_cohort.h"
#include "apps/finetune_fold.h"
#include "apps/finetune_report.h"
#include "apps/run_folder.h"
#include "engine/core/check.h"
#include "io/data/atomic_file.h"
#include "io/data/csv.h"
#include "io/data/file.h"

namespace pm::app {
namespace fs = std::filesystem;
namespace {

using Json = nlohmann::ordered_json;

// Those that cannot be opened are named and left out; a slide too large for the memory stops the run here.
OpenedSlides open_usable_slides(Context& ctx, const FinetuneOptions& options, const io::Cohort& cohort) {
  OpenedSlides opened = open_slides(options, cohort);
  for (const io::SlideProblem& problem : opened.problems)
    fmt::print(stderr, "warning: slide {} is left out: {}\n", problem.slide_id, problem.reason);
  PM_CHECK(!opened.sizes.empty(), IoError, "{}: no slide can be opened; the first: {}", options.table,
           opened.problems[0].reason);
  if (const std::string remark = unknown_resolution(opened, options); !remark.empty())
    fmt::print(stderr, "note: {}\n", remark);
  if (const std::string remark = check_memory(ctx, options, opened); !remark.empty())
    fmt::print(stderr, "note: {}\n", remark);
  return opened;
}

// What decides the result; a resumed run must share it.
Json training_settings(const FinetuneOptions& o) {
  const io::LoaderOptions& load = o.load;
  Json json = {{"table", o.table},
               {"task", o.task},
               {"slides", o.columns.slides},
               {"endpoint", o.columns.endpoint},
               {"skip_missing", o.columns.skip_missing},
               {"classes", o.classes},
               {"splits", o.splits},
               {"folds", o.folds},
               {"accumulate", o.accumulate},
               {"lr", o.lr},
               {"warmup", o.warmup},
               {"mpp", load.mpp},
               {"keep_background", load.keep_background},
               {"augment", o.augment},
               {"balance", o.balance}};
  json.update(shared_settings(o));
  json["slide_mpp"] = load.slide_mpp ? Json(*load.slide_mpp) : Json();
  const io::TableOptions& columns = o.columns;
  json["label_column"] = columns.label_column;
  for (const auto& [name, column] : {std::pair{"path_column", &columns.path_column},
                                     {"slide_column", &columns.slide_column},
                                     {"case_column", &columns.case_column},
                                     {"fold_column", &columns.fold_column},
                                     {"time_column", &columns.time_column},
                                     {"event_column", &columns.event_column},
                                     {"censorship_column", &columns.censorship_column}}) {
    json[name] = column->empty() ? Json() : Json(*column);
  }
  return json;
}

struct FoldPlace {
  std::string label, folder;
};

FoldPlace place_of(const RunFolder& folder, const std::vector<io::Fold>& folds, size_t index) {
  if (!has_folds(folds)) return {"", folder.path()};
  return {"fold " + folds[index].name, folder.sub_folder("fold-" + folds[index].name)};
}

std::string state_of(const FinetuneOptions& options, const std::string& folder) {
  if (fs::exists(summary_file(folder))) return "done";
  const std::vector<int64_t> steps = io::checkpoint_steps(checkpoint_folder(folder));
  if (steps.empty()) return "not started";
  try {
    const TrainState state = read_state(fmt::format("{}/step-{}", checkpoint_folder(folder), steps.back()));
    return fmt::format("at epoch {} of {}, step {}", std::min(state.epoch + 1, options.epochs), options.epochs,
                       state.step);
  } catch (const IoError&) {
    return fmt::format("at step {}", steps.back());
  }
}

Json read_summary(const std::string& folder) {
  Json json = Json::parse(io::read_file(summary_file(folder)), nullptr, /*allow_exceptions=*/false);
  PM_CHECK(json.is_object(), IoError, "{}: not the summary of a fold; remove it to have it written again",
           summary_file(folder));
  return json;
}

// Mean and standard deviation over folds of each figure that all have.
Json over_folds(const std::vector<Json>& held_out) {
  Json result = Json::object();
  for (const auto& [name, first] : held_out[0].items()) {
    std::vector<double> values;
    for (const Json& fold : held_out) {
      if (fold.contains(name) && fold[name].is_number()) values.push_back(fold[name].get<double>());
    }
    if (values.size() != held_out.size() || name == "cases" || name == "slides" || name == "events") continue;
    double mean = 0.0, squares = 0.0;
    for (const double value : values) mean += value / static_cast<double>(values.size());
    for (const double value : values) squares += (value - mean) * (value - mean);
    const double deviation = values.size() > 1 ? std::sqrt(squares / static_cast<double>(values.size() - 1)) : 0.0;
    result[name] = {{"mean", mean}, {"deviation", deviation}};
  }
  return result;
}

// "cases 12, loss 0.7155, c_index 0.6210"
std::string in_words(const Json& figures) {
  std::string text;
  for (const auto& [name, value] : figures.items()) {
    const std::string number = value.is_number_float() ? fmt::format("{:.4f}", value.get<double>())
                               : value.is_null()       ? std::string("undefined")
                                                       : value.dump();
    text += fmt::format("{}{} {}", text.empty() ? "" : ", ", name, number);
  }
  return text;
}

void print_pooled(const Json& pooled) {
  if (pooled.contains("undefined")) {
    fmt::print("pooled: undefined: {}\n", pooled["undefined"].get<std::string>());
    return;
  }
  const auto number = [](const Json& json, const char* key, const char* format) {
    const Json value = json.value(key, Json());
    return value.is_number() ? fmt::format(fmt::runtime(format), value.get<double>()) : std::string("undefined");
  };
  const Json bootstrap = pooled.value("bootstrap", Json::object());
  for (const char* name : {"c_index", "top1", "macro_f1", "balanced_accuracy", "auc"}) {
    if (!pooled.contains(name)) continue;
    const Json interval = bootstrap.value(name, Json::object());
    fmt::print("{} pooled over {} cases: {}, 95 % interval {} to {}\n", name, pooled["n"].get<int64_t>(),
               number(pooled, name, "{:.4f}"), number(interval, "low", "{:.4f}"), number(interval, "high", "{:.4f}"));
  }
  if (pooled.contains("median_split")) {
    fmt::print("log-rank between the halves of low and high risk: p {}\n",
               number(pooled["median_split"], "p", "{:.3g}"));
  }
}

// What all folds say together: predictions of every held-out case in one table, figures per fold and over folds.
void join_folds(const FinetuneOptions& options, const RunFolder& folder, const std::vector<io::Fold>& folds,
                io::FileOps& files) {
  std::vector<std::string> cases, slides;
  std::vector<Json> held_out;
  Json summary = {{"folds", Json::array()}};
  for (size_t i = 0; i < folds.size(); ++i) {
    const FoldPlace place = place_of(folder, folds, i);
    cases.push_back(io::read_file(place.folder + "/predictions.csv"));
    slides.push_back(io::read_file(place.folder + "/slide_predictions.csv"));
    Json fold = read_summary(place.folder);
    held_out.push_back(fold.value("held_out", Json::object()));
    Json line = {{"fold", folds[i].name}};
    line.update(held_out.back());
    if (options.run.json) {
      fmt::print("{}\n", line.dump());
    } else {
      fmt::print("{}: {}\n", place.label, in_words(held_out.back()));
    }
    summary["folds"].push_back(std::move(line));
  }
  summary["over_folds"] = over_folds(held_out);
  io::write_file_atomically(folder.path() + "/predictions.csv", join_tables(cases), files);
  io::write_file_atomically(folder.path() + "/slide_predictions.csv", join_tables(slides), files);
  summary["pooled"] = pooled_figures(io::read_csv(folder.path() + "/predictions.csv"), options.run.seed);
  io::write_file_atomically(folder.path() + "/summary.json", summary.dump(1) + "\n", files);
  if (options.run.json) {
    fmt::print("{}\n", Json{{"over_folds", summary["over_folds"]}, {"pooled", summary["pooled"]}}.dump());
  } else {
    for (const auto& [name, value] : summary["over_folds"].items()) {
      fmt::print("{} over {}: {:.4f} +- {:.4f}\n", name,
                 folds.size() == 1 ? "1 fold" : fmt::format("{} folds", folds.size()), value["mean"].get<double>(),
                 value["deviation"].get<double>());
    }
    print_pooled(summary["pooled"]);
  }
}

}  // namespace

int run_finetune(const FinetuneOptions& options, const RunEnvironment& environment) {
  const io::Cohort cohort = read_training_cohort(options);
  const std::vector<io::Fold> folds = training_folds(options, cohort);
  if (const std::string left_out = skipped_rows(cohort.table); !left_out.empty())
    fmt::print(stderr, "note: {}\n", left_out);
  if (const std::string unknown = unknown_ids(folds); !unknown.empty()) fmt::print(stderr, "note: {}\n", unknown);
  const auto ctx = make_context(options.run);
  const OpenedSlides opened = open_usable_slides(*ctx, options, cohort);
  const Json about = about_run("finetune", options.arguments, options.run, *ctx);
  const RunFolder folder(options.out, about, training_settings(options), options.resume, environment.files);
  const bool divided = has_folds(folds);
  for (size_t i = 0; divided && i < folds.size(); ++i) {
    const FoldPlace place = place_of(folder, folds, i);
    fmt::print(stderr, "{}: {} training, {} held out slides, {}\n", place.label, folds[i].train.size(),
               folds[i].held_out().size(), state_of(options, place.folder));
  }
  const double start = now_seconds();
  StopRule rule(environment, options.stop_after);
  for (size_t i = 0; i < folds.size(); ++i) {
    const FoldPlace place = place_of(folder, folds, i);
    if (divided && fs::exists(summary_file(place.folder))) continue;
    FoldTrainer trainer(*ctx, {options, cohort, folds[i], place.folder, place.label, i, opened.unusable}, environment,
                        rule);
    if (!trainer.run()) return interrupted(environment.stop_signal(), options.stop_after);
  }
  if (divided) join_folds(options, folder, folds, environment.files);
  std::vector<FoldSource> sources;
  for (size_t i = 0; i < folds.size(); ++i) {
    sources.push_back({folds[i].name, place_of(folder, folds, i).folder});
  }
  write_run_report(options, {cohort, audit_for_report(options, cohort, folds), sources, training_settings(options),
                             about, opened.problems});
  fmt::print(stderr, "done in {}; wrote {}: {}checkpoints, {} and config.json\n", duration(now_seconds() - start),
             options.out,
             divided ? "per fold model, metrics.jsonl, predictions.csv and "
                     : "model (config.json, model.safetensors), metrics.jsonl, ",
             divided ? "predictions.csv, summary.json, report.html" : "summary.json, report.html");
  return kDone;
}

}  // namespace pm::app
