#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "io/report/plots.h"
#include "io/report/svg.h"

namespace pm::io {
namespace {

constexpr double kWidth = 420, kHeight = 270;
constexpr double kLeft = 46, kRight = 62, kTop = 36, kBottom = 44;
constexpr double kLabelGap = 14;
constexpr size_t kMaxPoints = 150;  // per line: more cannot be told apart at this width

struct Line {
  std::string label;
  size_t ink = 0;
  Curve points;
};

struct Panel {
  std::string title;
  std::vector<Line> lines;
  std::optional<double> chance;
  bool plain = false;  // one line that means every fold: dark, no label
};

// Finite points only; where there are too many, means over equal stretches of x.
Curve thin(const Curve& curve) {
  Curve finite;
  for (const CurvePoint& point : curve) {
    if (std::isfinite(point.x) && std::isfinite(point.y)) finite.push_back(point);
  }
  if (finite.size() <= kMaxPoints) return finite;
  const double start = finite.front().x;
  const double stretch = (finite.back().x - start) / static_cast<double>(kMaxPoints);
  if (!(stretch > 0.0)) return finite;
  Curve means;
  for (size_t i = 0; i < finite.size();) {
    const double end = start + (std::floor((finite[i].x - start) / stretch) + 1.0) * stretch;
    CurvePoint sum;
    double count = 0.0;
    for (; i < finite.size() && (count == 0.0 || finite[i].x < end); ++i, count += 1.0) {
      sum.x += finite[i].x;
      sum.y += finite[i].y;
    }
    means.push_back({sum.x / count, sum.y / count});
  }
  return means;
}

// Folds mostly share one schedule; the longest line then stands for all, also for folds that are not that far yet.
// Null when they do not, or there is nothing to join.
const FoldCurves* shared_schedule(const std::vector<FoldCurves>& folds) {
  const auto shorter = [](const FoldCurves& a, const FoldCurves& b) {
    return a.learning_rate.size() < b.learning_rate.size();
  };
  const auto longest = std::max_element(folds.begin(), folds.end(), shorter);
  if (folds.size() < 2 || longest->learning_rate.empty()) return nullptr;
  const auto same = [](const CurvePoint& p, const CurvePoint& q) { return p.x == q.x && p.y == q.y; };
  for (const FoldCurves& fold : folds) {
    if (!std::equal(fold.learning_rate.begin(), fold.learning_rate.end(), longest->learning_rate.begin(), same))
      return nullptr;
  }
  return &*longest;
}

Panel make_panel(const RunReport& report, std::string title, Curve FoldCurves::*member) {
  Panel panel;
  panel.title = std::move(title);
  for (size_t i = 0; i < report.curves.size(); ++i) {
    Line line{"fold " + svg::shorten(report.curves[i].fold, 4), i, thin(report.curves[i].*member)};
    if (!line.points.empty()) panel.lines.push_back(std::move(line));
  }
  panel.plain = panel.lines.size() == 1 && report.curves.size() == 1;
  return panel;
}

struct Range {
  double low = std::numeric_limits<double>::infinity(), high = -std::numeric_limits<double>::infinity();
  void take(double value) {
    low = std::min(low, value);
    high = std::max(high, value);
  }
  bool empty() const { return low > high; }
};

Range range_of(const Panel& panel, double CurvePoint::*axis) {
  Range range;
  for (const Line& line : panel.lines) {
    for (const CurvePoint& point : line.points) range.take(point.*axis);
  }
  return range;
}

std::string superscript(int number) {
  constexpr const char* kDigits[] = {"⁰", "¹", "²", "³", "⁴", "⁵", "⁶", "⁷", "⁸", "⁹"};
  std::string out = number < 0 ? "⁻" : "";
  for (const char digit : std::to_string(std::abs(number))) out += kDigits[digit - '0'];
  return out;
}

void draw_axes(svg::Canvas& canvas, const svg::Scale& x, const svg::Scale& y, const std::vector<double>& y_ticks,
               double y_step) {
  for (const double tick : y_ticks) {
    canvas.line(kLeft, y(tick), kWidth - kRight, y(tick), fmt::format(R"( stroke="{}")", svg::kGrid));
    canvas.text(kLeft - 8, y(tick) + 4, svg::tick_label(tick, y_step),
                fmt::format(R"( text-anchor="end" fill="{}")", svg::kQuietText));
  }
  double step = svg::round_step(x.data_high - x.data_low, 6);
  if (x.data_high - x.data_low >= 2.0) step = std::max(step, 1.0);
  const double base = kHeight - kBottom;
  canvas.line(kLeft, base, kWidth - kRight, base, fmt::format(R"( stroke="{}")", svg::kAxis));
  for (const double tick : svg::ticks_within(x.data_low, x.data_high, step)) {
    canvas.line(x(tick), base, x(tick), base + 4, fmt::format(R"( stroke="{}")", svg::kAxis));
    canvas.text(x(tick), base + 18, svg::tick_label(tick, step),
                fmt::format(R"( text-anchor="middle" fill="{}")", svg::kQuietText));
  }
  canvas.text((kLeft + kWidth - kRight) / 2, base + 36, "epoch",
              fmt::format(R"( text-anchor="middle" fill="{}")", svg::kQuietText));
}

void draw_lines(svg::Canvas& canvas, const Panel& panel, const svg::Scale& x, const svg::Scale& y) {
  std::vector<double> ends;
  for (const Line& line : panel.lines) {
    const svg::Ink ink = svg::ink(line.ink);
    const char* color = panel.plain ? svg::kText : ink.line;
    std::string commands;
    for (const CurvePoint& point : line.points) {
      commands += fmt::format("{}{} {}", commands.empty() ? "M" : "L", svg::num(x(point.x)), svg::num(y(point.y)));
    }
    const CurvePoint& last = line.points.back();
    canvas.path(
        commands,
        fmt::format(R"( fill="none" stroke="{}" stroke-width="1.75" stroke-linejoin="round" stroke-dasharray="{}")",
                    color, panel.plain ? "none" : ink.dash));
    canvas.add(fmt::format(R"(<circle cx="{}" cy="{}" r="2.75" fill="{}"/>)", svg::num(x(last.x)), svg::num(y(last.y)),
                           color));
    ends.push_back(y(last.y));
  }
  const double low = kTop, high = kHeight - kBottom;
  if (panel.plain || static_cast<double>(ends.size() - 1) * kLabelGap > high - low) return;
  const std::vector<double> places = svg::spread(ends, kLabelGap, low, high);
  for (size_t i = 0; i < panel.lines.size(); ++i) {
    const svg::Ink ink = svg::ink(panel.lines[i].ink);
    const double from = x(panel.lines[i].points.back().x) + 4, to = kWidth - kRight + 12;
    if (std::abs(places[i] - ends[i]) > 2.0 || to - from > 16.0) {  // a label that is not beside its line is tied to it
      canvas.path(fmt::format("M{} {}L{} {}", svg::num(from), svg::num(ends[i]), svg::num(to), svg::num(places[i])),
                  fmt::format(R"( fill="none" stroke="{}" stroke-width="0.75" stroke-opacity="0.6")", ink.line));
    }
    canvas.text(to + 3, places[i] + 4, panel.lines[i].label, fmt::format(R"( fill="{}")", ink.text));
  }
}

// One panel at the origin. `shared` widens the vertical axis, so that two panels can be compared.
std::string draw_panel(Panel panel, Range shared, double last_epoch) {
  Range range = range_of(panel, &CurvePoint::y);
  if (!shared.empty()) {
    range.take(shared.low);
    range.take(shared.high);
  }
  if (panel.chance) range.take(*panel.chance);
  const double largest = std::max(std::abs(range.low), std::abs(range.high));
  const int power = largest > 0.0 ? std::max(-300, static_cast<int>(std::floor(std::log10(largest)))) : 0;
  if (power < -2 || power > 4) {  // 0.0004 reads better as 4 and one factor beside the title
    const double factor = std::pow(10.0, -power);
    for (Line& line : panel.lines) {
      for (CurvePoint& point : line.points) point.y *= factor;
    }
    range = {range.low * factor, range.high * factor};
    if (panel.chance) *panel.chance *= factor;
    panel.title += " (× 10" + superscript(power) + ")";
  }
  if (range.high - range.low <= 1e-9 * std::max(1.0, largest)) {  // a constant lies in the middle
    const double around = range.low == 0.0 ? 1.0 : 0.1 * std::abs(range.low);
    range = {range.low - around, range.high + around};
  }
  const double y_step = svg::round_step(range.high - range.low, 5);
  const std::vector<double> y_ticks = svg::ticks_around(range.low, range.high, y_step);
  const svg::Scale x{0.0, last_epoch, kLeft, kWidth - kRight};
  const svg::Scale y{y_ticks.front(), y_ticks.back(), kHeight - kBottom, kTop};
  svg::Canvas canvas;
  canvas.text(2, 18, panel.title, R"( font-size="14" font-weight="600")");
  draw_axes(canvas, x, y, y_ticks, y_step);
  if (panel.chance) {
    canvas.line(kLeft, y(*panel.chance), kWidth - kRight, y(*panel.chance),
                fmt::format(R"( stroke="{}" stroke-dasharray="3 3")", svg::kQuietText));
    canvas.text(kWidth - kRight - 6, y(*panel.chance) - 5, "chance",
                fmt::format(R"( text-anchor="end" font-size="12" fill="{}")", svg::kQuietText));
  }
  draw_lines(canvas, panel, x, y);
  return canvas.body();
}

std::string capitalized(std::string text) {
  if (!text.empty() && text[0] >= 'a' && text[0] <= 'z') text[0] = static_cast<char>(text[0] - 'a' + 'A');
  return text;
}

struct Drawing {
  std::string title, body;
};

std::vector<Drawing> draw_panels(const RunReport& report) {
  const Panel train = make_panel(report, "Training loss", &FoldCurves::train_loss);
  const Panel held_out = make_panel(report, "Validation loss", &FoldCurves::validation_loss);
  const bool named = !report.metrics.empty() && !report.metrics[0].name.empty();
  Panel metric = make_panel(report, named ? "Validation " + report.metrics[0].name : "Validation metric",
                            &FoldCurves::validation_metric);
  if (!report.metrics.empty()) metric.chance = report.metrics[0].chance;
  Panel rate = make_panel(report, "Learning rate", &FoldCurves::learning_rate);
  if (const FoldCurves* longest = shared_schedule(report.curves); longest != nullptr) {
    rate.lines = {{"", 0, thin(longest->learning_rate)}};
    rate.plain = true;
  }
  Range losses = range_of(train, &CurvePoint::y);
  const Range other = range_of(held_out, &CurvePoint::y);
  if (!other.empty()) {
    losses.take(other.low);
    losses.take(other.high);
  }
  double last_epoch = 0.0;
  for (const Panel* panel : {&train, &held_out, static_cast<const Panel*>(&metric), static_cast<const Panel*>(&rate)}) {
    if (const Range range = range_of(*panel, &CurvePoint::x); !range.empty())
      last_epoch = std::max(last_epoch, range.high);
  }
  if (last_epoch <= 0.0) last_epoch = 1.0;
  std::vector<Drawing> drawings;
  if (!train.lines.empty()) drawings.push_back({train.title, draw_panel(train, losses, last_epoch)});
  if (!held_out.lines.empty()) drawings.push_back({held_out.title, draw_panel(held_out, losses, last_epoch)});
  if (!metric.lines.empty()) drawings.push_back({capitalized(metric.title), draw_panel(metric, {}, last_epoch)});
  if (!rate.lines.empty()) drawings.push_back({rate.title, draw_panel(rate, {}, last_epoch)});
  return drawings;
}

}  // namespace

std::vector<std::string> training_panels(const RunReport& report) {
  std::vector<std::string> panels;
  for (const Drawing& drawing : draw_panels(report)) {
    svg::Canvas canvas;
    canvas.add(drawing.body);
    panels.push_back(canvas.finish(kWidth, kHeight, drawing.title, drawing.title + " over epochs, one line per fold"));
  }
  return panels;
}

std::string training_curves_svg(const RunReport& report) {
  const std::vector<Drawing> drawings = draw_panels(report);
  if (drawings.empty()) return "";
  const size_t columns = drawings.size() > 1 ? 2 : 1, rows = (drawings.size() + columns - 1) / columns;
  constexpr double kGap = 24;
  svg::Canvas canvas;
  for (size_t i = 0; i < drawings.size(); ++i) {
    canvas.add(fmt::format(R"svg(<g transform="translate({} {})">{}</g>)svg",
                           svg::num(static_cast<double>(i % columns) * (kWidth + kGap)),
                           svg::num(static_cast<double>(i / columns) * (kHeight + kGap)), drawings[i].body));
  }
  return canvas.finish(static_cast<double>(columns) * (kWidth + kGap) - kGap,
                       static_cast<double>(rows) * (kHeight + kGap) - kGap, "Training curves",
                       "Loss, validation metric and learning rate over epochs, one line per fold");
}

}  // namespace pm::io
