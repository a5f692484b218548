// Percentile intervals by resampling cases (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, section 13.3).
// Each replicate draws n cases of n with replacement; the interval of a statistic goes from its (1 - level) / 2 to its
// (1 + level) / 2 quantile over the replicates. Randomness is Philox: seed, n and replicates fix every draw.
#pragma once
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "engine/core/rng.h"

namespace pm::metrics {

struct Interval {
  double low = 0.0, high = 0.0;  // NaN when no replicate has the statistic
  int64_t replicates = 0;        // that entered
  int64_t undefined = 0;         // left out: the statistic is NaN there, as AUC is when one class was drawn alone
};

// From the cases of one replicate (indices 0 .. n - 1, with repetitions) to one or more numbers, always as many.
using Statistics = std::function<std::vector<double>(std::span<const int64_t> cases)>;

// One interval per statistic. Throws Error for n < 1, replicates < 1 or a level outside (0, 1). Each replicate is a draw
// of its own from `rng`, which moves on.
std::vector<Interval> bootstrap_intervals(Rng& rng, int64_t n, int64_t replicates, const Statistics& statistics,
                                          double level = 0.95);

}  // namespace pm::metrics
