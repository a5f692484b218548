#include <algorithm>
#include <cmath>

#include "engine/core/check.h"
#include "engine/metrics/summary.h"
#include "io/report/plots.h"
#include "io/report/svg.h"

namespace pm::io {
namespace {

constexpr double kWidth = 460, kLeft = 84, kTop = 36, kPlotHeight = 240, kRowHeight = 18;
constexpr double kNormal975 = 1.959963984540054;  // 97.5 % point of the standard normal

constexpr double kBase = kTop + kPlotHeight;

constexpr size_t kLongestName = 12;  // characters, at the end of a curve; whole names are in the text beside the plot

// Room for names at the ends of curves, in bold letters of 13 units.
double name_width(const KaplanMeierPlot& plot) {
  size_t longest = 0;
  for (const KaplanMeierCurve& curve : plot.curves) longest = std::max(longest, svg::count_characters(curve.name));
  return 12.0 + 7.8 * static_cast<double>(std::min(longest, kLongestName));
}

double last_time(const KaplanMeierPlot& plot) {
  double last = 0.0;
  for (const KaplanMeierCurve& curve : plot.curves) {
    if (!curve.steps.empty()) last = std::max(last, curve.steps.back().time);
  }
  return last > 0.0 && std::isfinite(last) ? last : 1.0;
}

// Months are read in years: 6, 12, 24, 60 rather than 10, 20, 50.
double time_step(double last, const std::string& unit) {
  constexpr int kMost = 6;
  if (unit == "months") {
    for (const double step : {1.0, 2.0, 3.0, 6.0, 12.0, 24.0, 36.0, 60.0, 120.0}) {
      if (last / step <= kMost) return step;
    }
  }
  return svg::round_step(last, kMost);
}

void draw_axes(svg::Canvas& canvas, const svg::Scale& x, const svg::Scale& y, double step, const std::string& unit) {
  canvas.text(2, 18, "Survival", R"( font-size="14" font-weight="600")");
  for (const double share : {0.0, 0.25, 0.5, 0.75, 1.0}) {
    canvas.line(kLeft, y(share), x.unit_high, y(share),
                fmt::format(R"( stroke="{}")", share == 0.0 ? svg::kAxis : svg::kGrid));
    canvas.text(kLeft - 8, y(share) + 4, fmt::format("{:.0f} %", 100.0 * share),
                fmt::format(R"( text-anchor="end" fill="{}")", svg::kQuietText));
  }
  for (const double tick : svg::ticks_within(0.0, x.data_high, step)) {
    canvas.line(x(tick), kBase, x(tick), kBase + 4, fmt::format(R"( stroke="{}")", svg::kAxis));
    canvas.text(x(tick), kBase + 18, svg::tick_label(tick, step),
                fmt::format(R"( text-anchor="middle" fill="{}")", svg::kQuietText));
  }
  canvas.text((kLeft + x.unit_high) / 2, kBase + 36, unit,
              fmt::format(R"( text-anchor="middle" fill="{}")", svg::kQuietText));
}

// Forward along the upper bounds, back along the lower ones; it ends where the interval does (at a survival of zero).
std::string band(const KaplanMeierCurve& curve, const svg::Scale& x, const svg::Scale& y) {
  std::string forth = fmt::format("M{} {}", svg::num(x(0.0)), svg::num(y(1.0))), back;
  Interval before{1.0, 1.0};
  for (const KaplanMeierStep& step : curve.steps) {
    const std::optional<Interval> now = survival_interval(step);
    const std::string at = svg::num(x(step.time));
    forth += fmt::format("H{}", at);
    if (!now) {
      back = fmt::format("L{} {}", at, svg::num(y(before.low))) + back;
      break;
    }
    forth += fmt::format("V{}", svg::num(y(now->high)));
    back = fmt::format("L{0} {1}L{0} {2}", at, svg::num(y(now->low)), svg::num(y(before.low))) + back;
    before = *now;
  }
  return forth + back + "Z";
}

std::string staircase(const KaplanMeierCurve& curve, const svg::Scale& x, const svg::Scale& y) {
  std::string commands = fmt::format("M{} {}", svg::num(x(0.0)), svg::num(y(1.0)));
  double before = 1.0;
  for (const KaplanMeierStep& step : curve.steps) {
    if (step.survival == before && &step != &curve.steps.back()) continue;
    commands += fmt::format("H{}", svg::num(x(step.time)));
    if (step.survival != before) commands += fmt::format("V{}", svg::num(y(step.survival)));
    before = step.survival;
  }
  return commands;
}

std::string censor_ticks(const KaplanMeierCurve& curve, const svg::Scale& x, const svg::Scale& y) {
  std::string commands;
  for (const KaplanMeierStep& step : curve.steps) {
    if (step.censored > 0) commands += fmt::format("M{} {}v8", svg::num(x(step.time)), svg::num(y(step.survival) - 4));
  }
  return commands;
}

void draw_curves(svg::Canvas& canvas, const KaplanMeierPlot& plot, const svg::Scale& x, const svg::Scale& y) {
  for (size_t i = 0; i < plot.curves.size(); ++i) {
    canvas.path(band(plot.curves[i], x, y), fmt::format(R"( fill="{}" fill-opacity="0.13")", svg::ink(i).line));
  }
  std::vector<double> ends;
  for (size_t i = 0; i < plot.curves.size(); ++i) {
    const KaplanMeierCurve& curve = plot.curves[i];
    const svg::Ink ink = svg::ink(i);
    canvas.path(staircase(curve, x, y),
                fmt::format(R"( fill="none" stroke="{}" stroke-width="2" stroke-dasharray="{}")", ink.line, ink.dash));
    if (const std::string ticks = censor_ticks(curve, x, y); !ticks.empty()) {
      canvas.path(ticks, fmt::format(R"( fill="none" stroke="{}" stroke-width="1")", ink.line));
    }
    ends.push_back(curve.steps.empty() ? y(1.0) : y(curve.steps.back().survival));
  }
  const std::vector<double> places = svg::spread(ends, 15, kTop, kBase);
  for (size_t i = 0; i < plot.curves.size(); ++i) {
    const double end = plot.curves[i].steps.empty() ? kLeft : x(plot.curves[i].steps.back().time);
    const double to = x.unit_high + 6;
    if (to - end > 10.0 || std::abs(places[i] - ends[i]) > 2.0) {  // followed for a shorter time than the others
      canvas.path(
          fmt::format("M{} {}L{} {}", svg::num(end + 3), svg::num(ends[i]), svg::num(to - 1), svg::num(places[i])),
          fmt::format(R"( fill="none" stroke="{}" stroke-width="0.75" stroke-dasharray="2 2")", svg::ink(i).line));
    }
    canvas.text(to + 2, places[i] + 4, svg::shorten(plot.curves[i].name, kLongestName),
                fmt::format(R"( font-weight="600" fill="{}")", svg::ink(i).text));
  }
}

void draw_numbers_at_risk(svg::Canvas& canvas, const KaplanMeierPlot& plot, const svg::Scale& x, double step) {
  double row = kBase + 62;
  canvas.text(2, row, "Number at risk", R"( font-weight="600")");
  for (size_t i = 0; i < plot.curves.size(); ++i) {
    row += kRowHeight;
    const char* color = svg::ink(i).text;
    canvas.text(2, row, svg::shorten(plot.curves[i].name, 9), fmt::format(R"( fill="{}")", color));
    for (const double tick : svg::ticks_within(0.0, x.data_high, step)) {
      canvas.text(x(tick), row, std::to_string(metrics::at_risk_at(plot.curves[i].steps, tick)),
                  fmt::format(R"( text-anchor="middle" fill="{}")", color));
    }
  }
}

}  // namespace

std::optional<Interval> survival_interval(const KaplanMeierStep& step) {
  if (step.survival >= 1.0) return Interval{1.0, 1.0};
  if (!(step.survival > 0.0) || !std::isfinite(step.std_err)) return std::nullopt;
  const double log_survival = std::log(step.survival);
  const double half = kNormal975 * step.std_err / (step.survival * -log_survival);
  return Interval{std::exp(log_survival * std::exp(half)), std::exp(log_survival * std::exp(-half))};
}

KaplanMeierPlot kaplan_meier_plot(const metrics::FollowUp& follow_up, std::span<const int64_t> group,
                                  const std::vector<std::string>& names) {
  KaplanMeierPlot plot;
  const auto count = static_cast<int64_t>(names.size());
  const double p = metrics::log_rank(follow_up, group, count).p;
  if (!std::isnan(p)) plot.p = p;
  for (int64_t k = 0; k < count; ++k) {
    const metrics::FollowUp part = follow_up.subset(metrics::cases_where(group, k));
    plot.curves.push_back({names[static_cast<size_t>(k)], metrics::kaplan_meier(part)});
  }
  return plot;
}

std::string p_value(double p) {
  if (p < 0.001) return "p < 0.001";
  return p < 0.1 ? fmt::format("p = {:.2g}", p) : fmt::format("p = {:.2f}", p);
}

std::string kaplan_meier_svg(const KaplanMeierPlot& plot) {
  PM_CHECK(!plot.curves.empty(), ShapeError, "a Kaplan-Meier plot needs at least one curve");
  const double last = last_time(plot);
  const double step = time_step(last, plot.time_unit);
  const svg::Scale x{0.0, last, kLeft, kWidth - name_width(plot)}, y{0.0, 1.0, kBase, kTop};
  svg::Canvas canvas;
  draw_axes(canvas, x, y, step, plot.time_unit);
  draw_curves(canvas, plot, x, y);
  std::string tested;
  if (plot.p) {
    tested = "log-rank " + p_value(*plot.p);
    canvas.text(kLeft + 10, kBase - 12, tested,
                R"( stroke="#fff" stroke-width="4" paint-order="stroke" stroke-linejoin="round")");
  }
  draw_numbers_at_risk(canvas, plot, x, step);
  const double height = kBase + 62 + static_cast<double>(plot.curves.size()) * kRowHeight + 10;
  std::string description = "Survival over " + plot.time_unit;
  for (const KaplanMeierCurve& curve : plot.curves) description += ", " + curve.name;
  if (!tested.empty()) description += "; " + tested;
  return canvas.finish(kWidth, height, "Kaplan-Meier curves", description);
}

}  // namespace pm::io
