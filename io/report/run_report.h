// The report of a training or evaluation run: one self-contained page, report.html, and its plots as SVG files.
//
// Callers fill RunReport with what they have: a part that is empty is left out of the page, so that the same call serves a
// run in its first epoch, a run that was stopped and a finished one. Nothing is computed here but
// the geometry of plots; means, curves and p values come from engine/metrics. All text may hold any UTF-8: it is escaped.
#pragma once
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "engine/metrics/survival.h"

namespace pm::io {

struct ReportEntry {
  std::string name, value;
};

// A figure by which folds are judged. The first one of RunReport::metrics is the one that the verdict quotes.
struct ReportMetric {
  std::string name;                       // "concordance index", "macro F1": as it reads within a sentence
  std::optional<double> chance;           // what guessing reaches: 0.5 for concordance
  std::optional<double> pooled;           // over the out-of-fold predictions of all folds together
  std::optional<double> ci_low, ci_high;  // 95 % interval of `pooled`, from resampled cases
};

enum class FoldState { waiting, running, done, stopped, failed };

struct ReportFold {
  std::string name;  // "0", as the split file counts
  FoldState state = FoldState::waiting;
  std::string note;  // why it failed or stopped, in one sentence
  std::optional<int64_t> train_cases, validation_cases, validation_events;
  int64_t epochs_done = 0, epochs = 0;
  std::vector<std::optional<double>>
      metrics;  // as RunReport::metrics, on the held-out cases; shorter is filled with gaps
};

struct CurvePoint {
  double x = 0.0;  // epochs as a real number: steps done / steps per epoch
  double y = 0.0;
};
// Ascending in x. Any number of points: plots average neighbours. Points that are not finite are left out.
using Curve = std::vector<CurvePoint>;

struct FoldCurves {
  std::string fold;       // ReportFold::name
  Curve train_loss;       // one point per step or per epoch
  Curve validation_loss;  // empty where it is not measured
  Curve learning_rate;
  Curve validation_metric;  // RunReport::metrics[0] on the held-out cases, one point per epoch
};

using metrics::KaplanMeierStep;
struct KaplanMeierCurve {
  std::string name;  // "low risk"
  std::vector<KaplanMeierStep> steps;
};
struct KaplanMeierPlot {
  std::vector<KaplanMeierCurve> curves;
  std::string time_unit = "months";  // with "months" the axis counts in years' worth of them: 12, 24, 60
  std::optional<double> p;           // log-rank between the curves; none where nothing can be compared
  std::string note;                  // how the groups were made, one sentence
};
// The curves of groups of cases and the log-rank test between them. group: of each case, 0 .. names.size() - 1.
KaplanMeierPlot kaplan_meier_plot(const metrics::FollowUp& follow_up, std::span<const int64_t> group,
                                  const std::vector<std::string>& names);

struct ConfusionMatrix {
  std::vector<std::string> class_names;      // shorter than counts: filled with numbers
  std::vector<std::vector<int64_t>> counts;  // [true class][predicted class], square
};

// One line of the audit: a fold's training cases, its held-out cases, or the whole cohort.
struct AuditRow {
  std::string name;  // "whole cohort", "fold 0, training"
  int64_t cases = 0, slides = 0;
  std::optional<int64_t> events;
  std::vector<int64_t> counts;  // slides or cases per CohortAudit::count_names
};
struct CohortAudit {
  std::string table;                     // the slide table's path
  std::vector<std::string> count_names;  // classes, or time bins: "stage I", "below 18.2 months"
  std::vector<AuditRow> rows;
  std::vector<std::string> remarks;  // what a reader must know: "3 cases have more than one slide"
};

struct Thumbnail {
  int64_t width = 0, height = 0;
  std::string jpeg;  // a JPEG file
};
// Shrinks (height, width, 3) RGB to at most `longest_side` pixels. Throws ShapeError when a side is not positive.
Thumbnail make_thumbnail(const uint8_t* rgb, int64_t width, int64_t height, int64_t longest_side = 320);

// A slide on which the model did badly. Listed in the order given: largest loss first.
struct WorstSlide {
  std::string slide_id, case_id, fold;
  double loss = 0.0;
  std::string truth, prediction;  // "event at 14.2 months", "risk 3.1 (highest tenth)"
  std::optional<Thumbnail> thumbnail;
};

struct SlideProblem {
  std::string slide_id, path;
  bool left_out = true;  // false: used, but part of it could not be read
  std::string reason;
};

struct RunReport {
  std::string title;    // "Survival on brca.csv"
  std::string verdict;  // empty: composed from metrics and folds
  std::vector<ReportMetric> metrics;
  std::vector<ReportFold> folds;
  std::vector<std::string>
      warnings;  // shown at the top: "12 steps were skipped: the gradient was not finite (slide A3)"
  std::vector<ReportEntry> settings;
  std::optional<CohortAudit> cohort;
  std::vector<FoldCurves> curves;
  std::optional<KaplanMeierPlot> kaplan_meier;
  std::optional<ConfusionMatrix> confusion;
  std::vector<WorstSlide> worst_slides;
  std::vector<SlideProblem> slide_problems;
  std::string command_line;
  std::vector<ReportEntry> versions;  // program, device, start, duration, memory: what is needed to run it again
};

// Writes report.html and, for the parts that are there, training_curves.svg, kaplan_meier.svg and confusion.svg into `folder`.
// Each file appears whole or not at all and replaces the one before. Throws IoError when that fails, ShapeError when the
// confusion matrix is not square.
void write_report(const std::string& folder, const RunReport& report);
// The page alone.
std::string report_html(const RunReport& report);

}  // namespace pm::io
