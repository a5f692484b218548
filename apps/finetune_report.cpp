#include "apps/finetune_report.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <new>
#include <nlohmann/json.hpp>
#include <set>

#include "apps/finetune_fold.h"
#include "apps/predict.h"
#include "apps/report_parts.h"
#include "engine/core/check.h"
#include "engine/metrics/survival.h"
#include "io/data/file.h"

namespace pm::app {
namespace {

using Json = nlohmann::ordered_json;
constexpr size_t kWorstSlides = 8;

// Keys of the figures that a task is judged by, the first of which the verdict quotes.
struct Judge {
  std::string key, name;
  std::optional<double> chance;
};
std::vector<Judge> judges(bool survival) {
  if (survival) return {{"c_index", "concordance index", 0.5}};
  return {{"macro_f1", "macro F1", {}}, {"balanced_accuracy", "balanced accuracy", {}}, {"auc", "AUC", 0.5}};
}

// Slides that could be opened and then not be read, or not in full: metrics.jsonl names them.
void add_unreadable(io::RunReport& report, const ReportSource& source) {
  std::set<std::string> listed;
  for (const FoldSource& fold : source.folds) {
    for (const Json& line : metrics_lines(fold)) {
      const std::string event = line.value("event", "");
      if (event != "unreadable" && event != "bad tiles") continue;
      const std::string id = line.value("slide_id", "");
      if (listed.insert(id).second)
        report.slide_problems.push_back({id, line.value("path", ""), event == "unreadable", line.value("reason", "")});
    }
  }
}

// The cases below and above the median of the predicted risk.
io::KaplanMeierPlot median_halves(const io::CsvTable& table) {
  std::vector<double> risk, time;
  std::vector<uint8_t> event;
  for (int64_t row = 0; row < table.row_count(); ++row) {
    risk.push_back(std::strtod(table.at(row, "risk").c_str(), nullptr));
    time.push_back(std::strtod(table.at(row, "survival_months").c_str(), nullptr));
    event.push_back(table.at(row, "censorship") == "1" ? 0 : 1);
  }
  const metrics::FollowUp follow_up(time, event);
  const std::vector<int64_t> half = metrics::median_split(risk);
  std::vector<int64_t> members[2];
  for (size_t i = 0; i < half.size(); ++i) members[half[i]].push_back(static_cast<int64_t>(i));
  io::KaplanMeierPlot plot;
  for (const int k : {0, 1}) {
    if (!members[k].empty())
      plot.curves.push_back({k == 0 ? "low risk" : "high risk", metrics::kaplan_meier(follow_up.subset(members[k]))});
  }
  const double p = metrics::log_rank(follow_up, half, 2).p;
  if (std::isfinite(p)) plot.p = p;
  plot.note = "Held-out cases below and above the median of their predicted risk.";
  return plot;
}

std::string class_name(const io::Cohort& cohort, const std::string& label) {
  const size_t index = std::strtoull(label.c_str(), nullptr, 10);
  return index < cohort.table.class_names.size() ? cohort.table.class_names[index] : "class " + label;
}

// The slide, small; nothing where it cannot be read any more.
std::optional<io::Thumbnail> thumbnail_of(const FinetuneOptions& options, const io::SlideRow& row) {
  constexpr double kReadSide = 640.0;  // pixels: twice what is shown
  try {
    ReadOptions read{options.load.mpp, options.load.slide_mpp};
    io::SlideOptions slide;
    slide.mpp = read.mpp;
    slide.slide_mpp = row.mpp ? row.mpp : read.slide_mpp;
    const io::SlidePlan plan = io::plan_slide(row.path, slide);
    read.mpp *= std::max(1.0, static_cast<double>(std::max(plan.width, plan.height)) / kReadSide);
    const io::Image image = read_slide_row(row, read).image;
    return io::make_thumbnail(image.rgb.data(), image.width, image.height);
  } catch (const Error&) {
    return std::nullopt;
  } catch (const std::bad_alloc&) {
    return std::nullopt;
  }
}

std::vector<io::WorstSlide> worst_slides(const FinetuneOptions& options, const io::Cohort& cohort,
                                         const io::CsvTable& table, bool survival) {
  std::vector<io::WorstSlide> slides;
  for (int64_t row = 0; row < table.row_count(); ++row) {
    io::WorstSlide slide;
    slide.slide_id = table.at(row, "slide_id");
    slide.case_id = table.at(row, "case_id");
    slide.fold = table.at(row, "fold");
    slide.loss = std::strtod(table.at(row, "loss").c_str(), nullptr);
    if (survival) {
      const bool censored = table.at(row, "censorship") == "1";
      slide.truth =
          fmt::format("{} {} months", censored ? "event-free for" : "event at", table.at(row, "survival_months"));
      slide.prediction = fmt::format("risk {:.3f}", std::strtod(table.at(row, "risk").c_str(), nullptr));
    } else {
      slide.truth = class_name(cohort, table.at(row, "Y"));
      slide.prediction = class_name(cohort, table.at(row, "Y_hat"));
    }
    slides.push_back(std::move(slide));
  }
  std::stable_sort(slides.begin(), slides.end(), [](const auto& a, const auto& b) { return a.loss > b.loss; });
  if (slides.size() > kWorstSlides) slides.resize(kWorstSlides);
  std::map<std::string, const io::SlideRow*> rows;
  for (const io::SlideRow& row : cohort.slides()) rows.emplace(row.slide_id, &row);
  for (io::WorstSlide& slide : slides) {
    if (const auto row = rows.find(slide.slide_id); row != rows.end())
      slide.thumbnail = thumbnail_of(options, *row->second);
  }
  return slides;
}

// What the out-of-fold predictions say together.
void add_held_out(io::RunReport& report, const FinetuneOptions& options, const io::Cohort& cohort,
                  const std::vector<Judge>& judged) {
  const std::string file = options.out + "/predictions.csv";
  if (!std::filesystem::exists(file)) return;
  const io::CsvTable cases = io::read_csv(file);
  const bool survival = cases.find("risk") >= 0;
  report.worst_slides = worst_slides(options, cohort, io::read_csv(options.out + "/slide_predictions.csv"), survival);
  const Json pooled = Json::parse(io::read_file(summary_file(options.out))).value("pooled", Json::object());
  if (pooled.contains("undefined")) {  // one class, or no event: there is nothing to judge by
    report.warnings.push_back(
        fmt::format("The held-out predictions cannot be judged: {}", pooled["undefined"].get<std::string>()));
    return;
  }
  for (size_t k = 0; k < judged.size(); ++k) {
    report.metrics[k].pooled = number_of(pooled, judged[k].key);
    const Json interval = pooled.value("bootstrap", Json::object()).value(judged[k].key, Json::object());
    report.metrics[k].ci_low = number_of(interval, "low");
    report.metrics[k].ci_high = number_of(interval, "high");
  }
  if (survival) report.kaplan_meier = median_halves(cases);
  if (pooled.contains("confusion")) {
    report.confusion =
        io::ConfusionMatrix{cohort.table.class_names, pooled["confusion"].get<std::vector<std::vector<int64_t>>>()};
  }
}

}  // namespace

void write_run_report(const FinetuneOptions& options, const ReportSource& source) {
  const std::vector<FoldSource>& folds = source.folds;
  io::RunReport report;
  report.title = "Fine-tuning on " + std::filesystem::path(options.table).filename().string();
  report.slide_problems = source.problems;
  add_unreadable(report, source);
  report.cohort = source.audit;
  std::vector<Json> summaries;
  bool survival = false;
  for (const FoldSource& fold : folds) {
    summaries.push_back(Json::parse(io::read_file(summary_file(fold.folder))));
    survival = survival || !summaries.back().value("survival_cuts", Json::array()).empty();
  }
  const std::vector<Judge> judged = judges(survival);
  for (const Judge& judge : judged) report.metrics.push_back({judge.name, judge.chance, {}, {}, {}});
  for (size_t i = 0; i < folds.size(); ++i) {
    const Json& summary = summaries[i];
    const Json held_out = summary.value("held_out", Json::object());
    io::ReportFold fold;
    fold.name = folds[i].name;
    fold.state = io::FoldState::done;
    fold.epochs = fold.epochs_done = summary.value("epochs", int64_t{0});
    if (held_out.contains("cases")) fold.validation_cases = held_out["cases"].get<int64_t>();
    if (held_out.contains("events")) fold.validation_events = held_out["events"].get<int64_t>();
    for (const Judge& judge : judged) fold.metrics.push_back(number_of(held_out, judge.key));
    if (const int64_t skipped = summary.value("skipped", int64_t{0}); skipped > 0) {
      report.warnings.push_back(fmt::format("Fold {}: {} steps were skipped because loss or gradient was not finite.",
                                            folds[i].name, skipped));
    }
    report.folds.push_back(std::move(fold));
    report.curves.push_back(curves_of(folds[i], judged[0].key));
  }
  add_held_out(report, options, source.cohort, judged);
  add_run_entries(report, source.settings, source.about);
  io::write_report(options.out, report);
}

}  // namespace pm::app
