#include <cmath>
#include <limits>
#include <numeric>
#include <set>

#include "engine/core/error.h"
#include "engine/metrics/bootstrap.h"
#include "engine/metrics/summary.h"
#include "tests/support/test.h"

namespace pm::test {
namespace {

using metrics::bootstrap_intervals;
using metrics::Interval;

// Mean of the numbers 0 .. n - 1 drawn.
std::vector<double> mean_case(std::span<const int64_t> cases) {
  return {static_cast<double>(std::accumulate(cases.begin(), cases.end(), int64_t{0})) /
          static_cast<double>(cases.size())};
}

Interval mean_interval(uint64_t seed, int64_t n, int64_t replicates, double level = 0.95) {
  Rng rng(seed);
  return bootstrap_intervals(rng, n, replicates, mean_case, level).at(0);
}

}  // namespace

TEST_CASE("a bootstrap depends on its seed alone", "[cpu]") {
  const Interval a = mean_interval(7, 50, 200), b = mean_interval(7, 50, 200), c = mean_interval(8, 50, 200);
  CHECK(a.low == b.low);
  CHECK(a.high == b.high);
  CHECK((a.low != c.low || a.high != c.high));
}

TEST_CASE("a bootstrap interval of a mean has the width theory gives", "[cpu]") {
  const int64_t n = 400;
  const Interval interval = mean_interval(1, n, 4000);
  const double centre = 0.5 * static_cast<double>(n - 1);
  // deviation of the mean of n draws from 0 .. n - 1
  const double deviation = std::sqrt((static_cast<double>(n * n) - 1.0) / 12.0 / static_cast<double>(n));
  CHECK(std::abs(interval.low - (centre - 1.96 * deviation)) < 0.15 * deviation);
  CHECK(std::abs(interval.high - (centre + 1.96 * deviation)) < 0.15 * deviation);
  CHECK(interval.replicates == 4000);
  CHECK(interval.undefined == 0);
  const Interval half = mean_interval(1, n, 4000, 0.5);
  CHECK(std::abs(half.high - (centre + 0.6745 * deviation)) < 0.15 * deviation);
}

TEST_CASE("every case is drawn as often as any other", "[cpu]") {
  const int64_t n = 7, replicates = 10'000;
  std::vector<int64_t> counts(static_cast<size_t>(n));
  Rng rng(3);
  bootstrap_intervals(rng, n, replicates, [&](std::span<const int64_t> cases) {
    for (const int64_t i : cases) ++counts.at(static_cast<size_t>(i));
    return std::vector<double>{};
  });
  for (const int64_t count : counts) CHECK(std::abs(static_cast<double>(count - replicates)) < 5.0 * std::sqrt(1e4));
}

TEST_CASE("replicates without the statistic are counted and left out", "[cpu]") {
  Rng rng(2);
  int64_t calls = 0;
  const auto intervals = bootstrap_intervals(rng, 3, 10, [&](std::span<const int64_t>) {
    const double nan = std::numeric_limits<double>::quiet_NaN();
    ++calls;
    return std::vector<double>{calls % 2 == 0 ? 1.0 : nan, nan};
  });
  REQUIRE(intervals.size() == 2);
  CHECK(intervals[0].low == 1.0);
  CHECK(intervals[0].replicates == 5);
  CHECK(intervals[0].undefined == 5);
  CHECK(std::isnan(intervals[1].high));
  CHECK(intervals[1].replicates == 0);
}

TEST_CASE("a bootstrap moves the random stream on by its replicates", "[cpu]") {
  Rng rng(9);
  bootstrap_intervals(rng, 4, 25, mean_case);
  CHECK(rng.state() == RngState{9, 25});
  CHECK_THROWS_AS(bootstrap_intervals(rng, 0, 25, mean_case), Error);
  CHECK_THROWS_AS(bootstrap_intervals(rng, 4, 0, mean_case), Error);
  CHECK_THROWS_AS(bootstrap_intervals(rng, 4, 25, mean_case, 1.0), Error);
  CHECK(mean_interval(9, 1, 3).high == 0.0);
}

TEST_CASE("mean and deviation leave out what is undefined", "[cpu]") {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const metrics::Summary s = metrics::summarise(std::vector<double>{2, 4, nan, 4, 6});
  CHECK(s.n == 4);
  CHECK(s.mean == 4.0);
  CHECK(s.deviation == Approx(std::sqrt(8.0 / 3)));
  CHECK(std::isnan(metrics::summarise(std::vector<double>{5}).deviation));
  CHECK(metrics::summarise(std::vector<double>{5}).mean == 5.0);
  CHECK(std::isnan(metrics::summarise({}).mean));
}

TEST_CASE("quantiles interpolate between neighbours", "[cpu]") {
  const std::vector<double> sorted = {1, 2, 4, 8};
  CHECK(metrics::sorted_quantile(sorted, 0.0) == 1.0);
  CHECK(metrics::sorted_quantile(sorted, 1.0) == 8.0);
  CHECK(metrics::sorted_quantile(sorted, 0.5) == 3.0);
  CHECK(metrics::sorted_quantile(sorted, 0.25) == 1.75);
  CHECK(metrics::median({8, 1, 4}) == 4.0);
  CHECK(std::isnan(metrics::median({})));
  CHECK_THROWS_AS(metrics::sorted_quantile(sorted, 1.5), Error);
}

}  // namespace pm::test
