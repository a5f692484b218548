// The plots of a report, each a whole SVG file as text.
#pragma once
#include <optional>
#include <string>
#include <vector>

#include "io/report/run_report.h"

namespace pm::io {

// Panels of one size, one quantity each: training loss, validation loss, validation metric, learning rate. Those that no fold
// has points for are missing. Empty when there is none.
std::vector<std::string> training_panels(const RunReport& report);
// The same panels in one picture, two in a row; "" when there is none.
std::string training_curves_svg(const RunReport& report);

// Survival curves with censoring ticks, 95 % bands, numbers at risk and the log-rank p. Throws ShapeError without any curve.
std::string kaplan_meier_svg(const KaplanMeierPlot& plot);
// The 95 % interval of a survival estimate from Greenwood's standard error, on the log(-log) scale, so that it stays in 0..1.
struct Interval {
  double low = 0.0, high = 1.0;
};
std::optional<Interval> survival_interval(const KaplanMeierStep& step);
// "p = 0.012", "p < 0.001"
std::string p_value(double p);

// Throws ShapeError unless square and not empty.
std::string confusion_svg(const ConfusionMatrix& confusion);

}  // namespace pm::io
