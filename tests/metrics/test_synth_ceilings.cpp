// How well the outcomes of made-up cohorts can be ranked, by what part of the picture is looked at.
#include <cmath>
#include <map>

#include "engine/metrics/survival.h"
#include "io/synth/synth_cohort.h"
#include "tests/support/test.h"

namespace pm::test {

TEST_CASE("no part of the picture ranks made-up cases as their score does", "[cpu]") {
  io::SynthOptions options;
  options.cases = 20'000;
  const std::vector<io::SynthCase> cases = io::draw_cases(options);
  std::vector<double> months, score, upper, relation, best_of_local;
  std::vector<uint8_t> events;
  std::map<int64_t, std::pair<double, int64_t>> bins;  // of m, 0.05 wide: sum and number of scores
  const auto bin = [](const io::SynthCase& drawn) {
    return std::lround(10.0 * (drawn.contrast[0] + drawn.contrast[1]));
  };
  for (const io::SynthCase& drawn : cases) {
    months.push_back(drawn.months);
    events.push_back(drawn.censored ? 0 : 1);
    score.push_back(drawn.score);
    upper.push_back(drawn.contrast[0]);
    relation.push_back(drawn.contrast[0] - drawn.contrast[1]);
    bins[bin(drawn)].first += drawn.score;
    ++bins[bin(drawn)].second;
  }
  for (const io::SynthCase& drawn : cases) {
    const auto& [sum, count] = bins[bin(drawn)];
    best_of_local.push_back(sum / static_cast<double>(count));
  }
  const metrics::FollowUp follow_up(months, events);
  const auto reached = [&](const std::vector<double>& risk) { return metrics::concordance(follow_up, risk).index(); };
  // Standard error of a concordance over 20,000 cases: below 0.003.
  CHECK(reached(score) == Approx(0.91).margin(0.015));
  CHECK(reached(relation) == Approx(0.85).margin(0.015));
  CHECK(reached(upper) == Approx(0.79).margin(0.015));
  CHECK(reached(best_of_local) == Approx(0.58).margin(0.015));
}

}  // namespace pm::test
