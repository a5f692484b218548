// Mean, deviation and quantiles of a few numbers: metrics over folds, risks of a cohort; and which cases make a group.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

namespace pm::metrics {

struct Summary {
  int64_t n = 0;           // finite values: a metric that a fold does not have (NaN) is left out
  double mean = 0.0;       // NaN when n is 0
  double deviation = 0.0;  // of a sample, divided by n - 1; NaN when n is below 2
};

Summary summarise(std::span<const double> values);
// Quantile by linear interpolation between order statistics (R's type 7, NumPy's default), fraction in [0, 1]. The values
// must be sorted and finite; NaN when there are none.
double sorted_quantile(std::span<const double> sorted, double fraction);
// The middle value, or the mean of the two in the middle; NaN when there are none.
double median(std::vector<double> values);

// The cases of one group or fold, in order: where `of_case` has this value.
std::vector<int64_t> cases_where(std::span<const int64_t> of_case, int64_t value);

}  // namespace pm::metrics
