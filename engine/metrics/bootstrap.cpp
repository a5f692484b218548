#include "engine/metrics/bootstrap.h"

#include <algorithm>
#include <cmath>

#include "engine/core/check.h"
#include "engine/metrics/summary.h"

namespace pm::metrics {
namespace {

// Position `index` of a draw as a whole number in [0, n). 53 random bits: the 23 of uniform_at would never reach most
// cases of a large cohort, and favour some of a small one.
int64_t random_index(const RngState& draw, int64_t index, int64_t n) {
  const PhiloxBlock block = philox_at(draw.seed, draw.offset, static_cast<uint64_t>(index));
  const uint64_t bits = (uint64_t{block.word[0]} << 32 | block.word[1]) >> 11;
  const auto drawn = static_cast<int64_t>(static_cast<double>(bits) * 0x1p-53 * static_cast<double>(n));
  return std::min(drawn, n - 1);
}

}  // namespace

std::vector<Interval> bootstrap_intervals(Rng& rng, int64_t n, int64_t replicates, const Statistics& statistics,
                                          double level) {
  PM_CHECK(n >= 1, Error, "a bootstrap needs at least one case, got {}", n);
  PM_CHECK(replicates >= 1, Error, "a bootstrap needs at least one replicate, got {}", replicates);
  PM_CHECK(level > 0.0 && level < 1.0, Error, "the level of an interval lies between 0 and 1, got {}", level);
  std::vector<std::vector<double>> values;  // per statistic, the replicates that have it
  std::vector<int64_t> cases(static_cast<size_t>(n));
  for (int64_t replicate = 0; replicate < replicates; ++replicate) {
    const RngState draw = rng.next();
    for (int64_t i = 0; i < n; ++i) cases[static_cast<size_t>(i)] = random_index(draw, i, n);
    const std::vector<double> row = statistics(cases);
    if (replicate == 0) values.resize(row.size());
    PM_CHECK(row.size() == values.size(), Error, "a replicate gave {} statistics, the first gave {}", row.size(),
             values.size());
    for (size_t k = 0; k < row.size(); ++k) {
      if (!std::isnan(row[k])) values[k].push_back(row[k]);
    }
  }
  std::vector<Interval> intervals;
  for (std::vector<double>& column : values) {
    std::sort(column.begin(), column.end());
    const auto used = static_cast<int64_t>(column.size());
    intervals.push_back({sorted_quantile(column, 0.5 * (1.0 - level)), sorted_quantile(column, 0.5 * (1.0 + level)),
                         used, replicates - used});
  }
  return intervals;
}

}  // namespace pm::metrics
