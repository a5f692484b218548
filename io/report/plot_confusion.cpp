#include <algorithm>
#include <cmath>
#include <numeric>
#include <sstream>

#include "engine/core/check.h"
#include "io/report/plots.h"
#include "io/report/svg.h"

namespace pm::io {
namespace {

constexpr double kWidth = 440, kCharacter = 7.1;  // width of a letter at 13 units, generously
constexpr double kLargestCell = 84, kLine = 15;
constexpr size_t kLongestLine = 14;  // characters

// White to deep blue, so that every shade between carries black or white letters.
std::string shade(double share) {
  const auto mix = [&](double from, double to) { return static_cast<int>(std::lround(from + share * (to - from))); };
  return fmt::format("#{:02x}{:02x}{:02x}", mix(247, 0), mix(249, 84), mix(251, 138));
}

// Class names broken at spaces into lines of at most `most` characters.
struct Label {
  std::vector<std::vector<std::string>> names;
  size_t lines = 1;    // of the name with most of them
  double width = 0.0;  // of the longest line
  bool cut = false;    // a word or a name was too long
};

Label fit(const std::vector<std::string>& names, size_t most, size_t most_lines = 3) {
  Label label;
  for (const std::string& name : names) {
    std::vector<std::string> lines = {""};
    std::stringstream words(name);
    for (std::string word; words >> word;) {
      std::string& line = lines.back();
      const bool fits = svg::count_characters(line) + svg::count_characters(word) + 1 <= most;
      if (line.empty()) {
        line = word;
      } else if (fits || lines.size() == most_lines) {
        line += " " + word;
      } else {
        lines.push_back(word);
      }
    }
    for (std::string& line : lines) {
      const std::string whole = line;
      line = svg::shorten(whole, most);
      label.cut = label.cut || line != whole;
      label.width = std::max(label.width, kCharacter * static_cast<double>(svg::count_characters(line)));
    }
    label.lines = std::max(label.lines, lines.size());
    label.names.push_back(std::move(lines));
  }
  return label;
}

}  // namespace

std::string confusion_svg(const ConfusionMatrix& confusion) {
  const size_t n = confusion.counts.size();
  PM_CHECK(n > 0, ShapeError, "a confusion matrix needs at least one class");
  for (const auto& row : confusion.counts) {
    PM_CHECK(row.size() == n, ShapeError, "a confusion matrix must be square, it has {} rows and a row of {} numbers",
             n, row.size());
  }
  std::vector<std::string> names;
  for (size_t i = 0; i < n; ++i) {
    names.push_back(i < confusion.class_names.size() ? confusion.class_names[i] : std::to_string(i));
  }
  // Names beside the rows; above the columns too where their words fit, else slanted.
  Label rows = fit(names, kLongestLine);
  const double left = 28 + rows.width + 8;
  double right = 8, side = std::min((kWidth - left - right) / static_cast<double>(n), kLargestCell);
  Label columns = fit(names, static_cast<size_t>(std::max(1.0, (side - 4) / kCharacter)));
  const bool slanted = columns.cut;
  double top = 30 + 20 + static_cast<double>(columns.lines - 1) * kLine;
  if (slanted) {
    columns = fit(names, kLongestLine, 1);
    right += 0.6 * columns.width;  // the last name leans out over the grid
    side = std::min((kWidth - left - right) / static_cast<double>(n), kLargestCell);
    top = 46 + 0.72 * columns.width;
  }
  const auto room = static_cast<size_t>(side / kLine);
  if (rows.lines > room) rows = fit(names, kLongestLine, std::max<size_t>(1, room));
  const std::string size = fmt::format(R"( font-size="{}")", svg::num(std::min(13.0, 0.9 * side)));
  const double grid = side * static_cast<double>(n);
  int64_t largest = 0;
  for (const auto& row : confusion.counts) largest = std::max(largest, *std::max_element(row.begin(), row.end()));
  const auto digits = static_cast<double>(std::to_string(largest).size());
  const double letters = std::clamp(std::min(0.5 * side, (side - 3.0) / (0.62 * digits)), 3.0, 14.0);

  svg::Canvas canvas;
  canvas.text(left, 18, "Predicted", R"( font-size="14" font-weight="600")");
  canvas.add(fmt::format(
      R"svg(<text transform="translate(16 {}) rotate(-90)" text-anchor="middle" font-size="14" font-weight="600">True</text>)svg",
      svg::num(top + 0.5 * grid)));
  for (size_t i = 0; i < n; ++i) {
    const double middle = (static_cast<double>(i) + 0.5) * side;
    const auto& beside = rows.names[i];
    for (size_t k = 0; k < beside.size(); ++k) {
      const double down = (static_cast<double>(k) - 0.5 * static_cast<double>(beside.size() - 1)) * kLine;
      canvas.text(left - 8, top + middle + 4 + down, beside[k], R"( text-anchor="end")" + size);
    }
    const auto& above = columns.names[i];
    if (slanted) {
      canvas.add(fmt::format(R"svg(<text transform="translate({} {}) rotate(-45)"{}>{}</text>)svg",
                             svg::num(left + middle), svg::num(top - 8), size, svg::escape(above[0])));
      continue;
    }
    for (size_t k = 0; k < above.size(); ++k) {
      const double up = static_cast<double>(above.size() - 1 - k) * kLine;
      canvas.text(left + middle, top - 8 - up, above[k], R"( text-anchor="middle")" + size);
    }
  }
  for (size_t row = 0; row < n; ++row) {
    const auto& counts = confusion.counts[row];
    const auto total = static_cast<double>(std::accumulate(counts.begin(), counts.end(), int64_t{0}));
    for (size_t column = 0; column < n; ++column) {
      const double share = total > 0.0 ? static_cast<double>(counts[column]) / total : 0.0;
      const double x = left + static_cast<double>(column) * side, y = top + static_cast<double>(row) * side;
      canvas.add(fmt::format(R"(<rect x="{}" y="{}" width="{}" height="{}" fill="{}"/>)", svg::num(x + 1),
                             svg::num(y + 1), svg::num(side - 2), svg::num(side - 2), shade(share)));
      const char* color = share > 0.68 ? "#fff" : svg::kText;
      const bool with_share = side >= 40.0 && total > 0.0;
      const double center = x + 0.5 * side, baseline = y + 0.5 * side + (with_share ? -1.0 : 0.36 * letters);
      canvas.text(center, baseline, std::to_string(counts[column]),
                  fmt::format(R"( text-anchor="middle" font-size="{}" font-weight="{}" fill="{}")", svg::num(letters),
                              row == column ? "700" : "400", color));
      if (with_share) {
        canvas.text(center, baseline + 15, fmt::format("{:.0f} %", 100.0 * share),
                    fmt::format(R"( text-anchor="middle" font-size="12" fill="{}")", color));
      }
    }
  }
  return canvas.finish(kWidth, top + grid + 8, "Confusion matrix",
                       "Counts per true class (rows) and predicted class (columns)");
}

}  // namespace pm::io
