#include "engine/metrics/summary.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "engine/core/check.h"

namespace pm::metrics {
namespace {

constexpr double kUndefined = std::numeric_limits<double>::quiet_NaN();

}  // namespace

Summary summarise(std::span<const double> values) {
  Summary summary;
  double sum = 0.0;
  for (const double value : values) {
    if (!std::isfinite(value)) continue;
    sum += value;
    ++summary.n;
  }
  summary.mean = summary.n > 0 ? sum / static_cast<double>(summary.n) : kUndefined;
  double squares = 0.0;  // in a second pass: equal values give exactly 0
  for (const double value : values) {
    if (std::isfinite(value)) squares += (value - summary.mean) * (value - summary.mean);
  }
  summary.deviation = summary.n > 1 ? std::sqrt(squares / static_cast<double>(summary.n - 1)) : kUndefined;
  return summary;
}

double sorted_quantile(std::span<const double> sorted, double fraction) {
  PM_CHECK(fraction >= 0.0 && fraction <= 1.0, Error, "a quantile needs a fraction from 0 to 1, got {}", fraction);
  if (sorted.empty()) return kUndefined;
  const double place = fraction * static_cast<double>(sorted.size() - 1);
  const size_t below = std::min(static_cast<size_t>(place), sorted.size() - 1);
  const size_t above = std::min(below + 1, sorted.size() - 1);
  return sorted[below] + (place - static_cast<double>(below)) * (sorted[above] - sorted[below]);
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return sorted_quantile(values, 0.5);
}

std::vector<int64_t> cases_where(std::span<const int64_t> of_case, int64_t value) {
  std::vector<int64_t> cases;
  for (size_t i = 0; i < of_case.size(); ++i) {
    if (of_case[i] == value) cases.push_back(static_cast<int64_t>(i));
  }
  return cases;
}

}  // namespace pm::metrics
