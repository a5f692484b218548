#include <array>
#include <cmath>

#include "engine/core/error.h"
#include "engine/core/rng.h"
#include "engine/metrics/survival.h"
#include "tests/support/test.h"

namespace pm::test {
namespace {

using metrics::Concordance;
using metrics::FollowUp;
using metrics::LogRank;

// Ten cases with every kind of tie. The numbers that R gives for them stand in the tests.
FollowUp ten() { return FollowUp({1, 1, 1, 2, 2, 3, 4, 4, 5, 6}, {1, 1, 1, 1, 0, 1, 1, 0, 0, 1}); }
const std::vector<double> kTenRisks = {3, 3, 1, 2, 5, 2, 2, 1, 1, 2};

void check_pairs(const Concordance& c, const std::array<int64_t, 5>& expected) {
  CHECK(std::array<int64_t, 5>{c.concordant, c.discordant, c.tied_risk, c.tied_time, c.tied_both} == expected);
}

void check_near(double actual, double expected, double relative = 1e-12) {
  CAPTURE(actual, expected);
  CHECK(std::abs(actual - expected) <= relative * std::abs(expected));
}

// Whole numbers in [0, below), the same for the same seed.
int64_t whole(const RngState& draw, int64_t index, int64_t below) {
  return static_cast<int64_t>(uniform_at(draw, index) * static_cast<double>(below));
}

// Straight from the definition, pair by pair.
Concordance concordance_by_pairs(const FollowUp& f, const std::vector<double>& risk) {
  Concordance c;
  for (int64_t i = 0; i < f.size(); ++i) {
    for (int64_t j = i + 1; j < f.size(); ++j) {
      const auto [first, second] =
          f.time(i) < f.time(j) || (f.time(i) == f.time(j) && f.event(i)) ? std::pair{i, j} : std::pair{j, i};
      const double lead = risk[static_cast<size_t>(first)] - risk[static_cast<size_t>(second)];
      if (!f.event(first)) continue;
      if (f.time(first) == f.time(second) && f.event(second)) {
        ++(lead == 0.0 ? c.tied_both : c.tied_time);
      } else {
        ++(lead > 0.0 ? c.concordant : lead < 0.0 ? c.discordant : c.tied_risk);
      }
    }
  }
  return c;
}

}  // namespace

TEST_CASE("concordance counts pairs as R does", "[cpu]") {
  const Concordance c = metrics::concordance(ten(), kTenRisks);
  check_pairs(c, {18, 8, 8, 2, 1});
  check_near(c.index(), 0.647058823529412);
  // one event, then one outlived case: the higher risk must come first
  check_pairs(metrics::concordance(FollowUp({1, 2}, {1, 0}), std::vector<double>{2, 1}), {1, 0, 0, 0, 0});
  check_pairs(metrics::concordance(FollowUp({1, 2}, {1, 0}), std::vector<double>{1, 2}), {0, 1, 0, 0, 0});
  check_pairs(metrics::concordance(FollowUp({1, 2}, {1, 0}), std::vector<double>{1, 1}), {0, 0, 1, 0, 0});
  // the earlier is censored: nobody knows
  check_pairs(metrics::concordance(FollowUp({1, 2}, {0, 1}), std::vector<double>{2, 1}), {0, 0, 0, 0, 0});
  // same time: an event comes before a censoring, in whichever row it stands; two events are tied
  check_pairs(metrics::concordance(FollowUp({1, 1}, {0, 1}), std::vector<double>{1, 2}), {1, 0, 0, 0, 0});
  check_pairs(metrics::concordance(FollowUp({1, 1}, {1, 1}), std::vector<double>{1, 2}), {0, 0, 0, 1, 0});
  check_pairs(metrics::concordance(FollowUp({1, 1}, {1, 1}), std::vector<double>{2, 2}), {0, 0, 0, 0, 1});
  check_pairs(metrics::concordance(FollowUp({1, 1}, {0, 0}), std::vector<double>{2, 2}), {0, 0, 0, 0, 0});
}

TEST_CASE("concordance equals a count pair by pair", "[cpu]") {
  for (const int64_t n : {0, 1, 2, 3, 17, 200}) {
    for (const int64_t levels : {1, 2, 7, 1000}) {  // few levels: many ties
      const RngState draw{5, static_cast<uint64_t>(n * 10 + levels)};
      std::vector<double> time, risk;
      std::vector<uint8_t> event;
      for (int64_t i = 0; i < n; ++i) {
        time.push_back(static_cast<double>(whole(draw, 4 * i, levels)));
        risk.push_back(static_cast<double>(whole(draw, 4 * i + 1, levels)) - 3.0);
        event.push_back(whole(draw, 4 * i + 2, 3) > 0 ? 1 : 0);
      }
      const FollowUp f(time, event);
      CAPTURE(n, levels);
      const Concordance expected = concordance_by_pairs(f, risk);
      check_pairs(metrics::concordance(f, risk), {expected.concordant, expected.discordant, expected.tied_risk,
                                                  expected.tied_time, expected.tied_both});
    }
  }
}

TEST_CASE("concordance of a large cohort counts beyond 32 bits", "[cpu]") {
  const int64_t n = 200'000;
  std::vector<double> time, risk;
  for (int64_t i = 0; i < n; ++i) {
    time.push_back(static_cast<double>(i));
    risk.push_back(static_cast<double>(-i));
  }
  const Concordance c = metrics::concordance(FollowUp(time, std::vector<uint8_t>(static_cast<size_t>(n), 1)), risk);
  check_pairs(c, {n * (n - 1) / 2, 0, 0, 0, 0});
  CHECK(c.index() == 1.0);
}

TEST_CASE("times that rounding tore apart are tied", "[cpu]") {
  REQUIRE(0.1 + 0.2 != 0.3);
  const std::vector<double> risk = {4, 3, 2, 1};
  check_pairs(metrics::concordance(FollowUp({0.1 + 0.2, 0.3, 1, 2}, {1, 1, 1, 0}), risk), {5, 0, 0, 1, 0});
  CHECK(metrics::kaplan_meier(FollowUp({0.1 + 0.2, 0.3, 1, 2}, {1, 1, 1, 0})).size() == 3);
  // the tolerance grows with the times: 1e-6 apart among thousands is rounding, among ones it is not
  CHECK(metrics::kaplan_meier(FollowUp({1000.0, 1000.000001}, {1, 1})).size() == 1);
  CHECK(metrics::kaplan_meier(FollowUp({1.0, 1.000001}, {1, 1})).size() == 2);
}

TEST_CASE("without comparable pairs the index is undefined", "[cpu]") {
  CHECK(std::isnan(metrics::concordance(FollowUp(), {}).index()));
  CHECK(std::isnan(metrics::concordance(FollowUp({3}, {1}), std::vector<double>{1}).index()));
  CHECK(std::isnan(metrics::concordance(FollowUp({1, 2, 3}, {0, 0, 0}), std::vector<double>{1, 2, 3}).index()));
}

TEST_CASE("survival metrics refuse what they cannot use", "[cpu]") {
  CHECK_THROWS_AS(FollowUp({1, 2}, {1}), Error);
  CHECK_THROWS_AS(FollowUp({1, NAN}, {1, 1}), Error);
  CHECK_THROWS_AS(metrics::concordance(ten(), std::vector<double>{1}), Error);
  CHECK_THROWS_AS(metrics::concordance(FollowUp({1, 2}, {1, 1}), std::vector<double>{1, NAN}), Error);
  CHECK_THROWS_AS(metrics::log_rank(FollowUp({1, 2}, {1, 1}), std::vector<int64_t>{0, 2}, 2), Error);
  CHECK_THROWS_AS(metrics::log_rank(FollowUp({1, 2}, {1, 1}), std::vector<int64_t>{0}, 2), Error);
}

TEST_CASE("kaplan-meier gives R's curve, errors and numbers at risk", "[cpu]") {
  const auto curve = metrics::kaplan_meier(ten());
  const double times[] = {1, 2, 3, 4, 5, 6}, survival[] = {0.7, 0.6, 0.48, 0.36, 0.36, 0.0};
  const double std_err[] = {0.144913767461894, 0.154919333848297, 0.163951212255354, 0.160996894379985,
                            0.160996894379985};
  const int64_t at_risk[] = {10, 7, 5, 4, 2, 1}, events[] = {3, 1, 1, 1, 0, 1}, censored[] = {0, 1, 0, 1, 1, 0};
  REQUIRE(curve.size() == 6);
  for (size_t i = 0; i < 6; ++i) {
    CAPTURE(i);
    CHECK(curve[i].time == times[i]);
    check_near(curve[i].survival, survival[i]);
    CHECK(curve[i].at_risk == at_risk[i]);
    CHECK(curve[i].events == events[i]);
    CHECK(curve[i].censored == censored[i]);
    if (i < 5) check_near(curve[i].std_err, std_err[i]);
  }
  CHECK(curve[5].survival == 0.0);
  CHECK(std::isnan(curve[5].std_err));
  CHECK(metrics::survival_at(curve, 0.5) == 1.0);
  CHECK(metrics::survival_at(curve, 1.0) == curve[0].survival);
  CHECK(metrics::survival_at(curve, 3.5) == curve[2].survival);
  CHECK(metrics::at_risk_at(curve, 0.0) == 10);
  CHECK(metrics::at_risk_at(curve, 2.0) == 7);
  CHECK(metrics::at_risk_at(curve, 4.5) == 2);
  CHECK(metrics::at_risk_at(curve, 6.5) == 0);
  CHECK(metrics::median_survival(curve) == 3.0);
}

TEST_CASE("kaplan-meier of nobody, of one case and of censored cases alone", "[cpu]") {
  CHECK(metrics::kaplan_meier(FollowUp()).empty());
  CHECK(std::isnan(metrics::median_survival({})));
  const auto one = metrics::kaplan_meier(FollowUp({4}, {1}));
  REQUIRE(one.size() == 1);
  CHECK(one[0].survival == 0.0);
  CHECK(one[0].at_risk == 1);
  const auto censored = metrics::kaplan_meier(FollowUp({1, 2, 2}, {0, 0, 0}));
  REQUIRE(censored.size() == 2);
  CHECK(censored[1].survival == 1.0);
  CHECK(censored[1].std_err == 0.0);
  CHECK(censored[1].at_risk == 2);
  CHECK(std::isnan(metrics::median_survival(censored)));
}

TEST_CASE("median survival on a flat stretch at one half is its middle", "[cpu]") {
  const auto median = [](std::vector<double> time, std::vector<uint8_t> event) {
    return metrics::median_survival(metrics::kaplan_meier(FollowUp(std::move(time), std::move(event))));
  };
  CHECK(median({1, 2, 3, 4}, {1, 1, 0, 0}) == 3.0);  // flat to the end of follow-up
  CHECK(median({1, 2, 3, 4}, {1, 1, 1, 0}) == 2.5);  // flat to the next event
  CHECK(median({1, 2, 3, 4}, {1, 1, 0, 1}) == 3.0);
  CHECK(median({1, 1}, {1, 0}) == 1.0);
  CHECK(median({1, 2, 3}, {1, 1, 1}) == 2.0);
}

TEST_CASE("log-rank gives R's statistic for two and more groups", "[cpu]") {
  const LogRank three = metrics::log_rank(ten(), std::vector<int64_t>{0, 1, 2, 0, 1, 2, 0, 1, 2, 2}, 3);
  check_near(three.chi2, 1.80296390388483);
  CHECK(three.degrees == 2);
  check_near(three.p, 0.405967589273556);
  CHECK(three.n == std::vector<int64_t>{3, 3, 4});
  CHECK(three.observed == std::vector<int64_t>{3, 1, 3});
  check_near(three.expected[0], 1.63571428571429);
  check_near(three.expected[2], 3.72857142857143);
  const LogRank two = metrics::log_rank(ten(), std::vector<int64_t>{1, 0, 0, 1, 0, 0, 1, 0, 0, 0}, 2);
  check_near(two.chi2, 1.78697036492775);
  CHECK(two.degrees == 1);
  check_near(two.p, 0.181295729956944);
}

TEST_CASE("log-rank takes groups of one case and of none", "[cpu]") {
  const std::vector<int64_t> with_single = {0, 1, 2, 0, 1, 2, 0, 1, 2, 3};
  const LogRank four = metrics::log_rank(ten(), with_single, 4);
  check_near(four.chi2, 2.59305774211511);
  CHECK(four.degrees == 3);
  check_near(four.p, 0.458707914428386);
  std::vector<int64_t> shifted;  // the same groups under the numbers 1, 3, 5, 7 of nine
  for (const int64_t g : with_single) shifted.push_back(2 * g + 1);
  const LogRank sparse = metrics::log_rank(ten(), shifted, 9);
  check_near(sparse.chi2, four.chi2);
  CHECK(sparse.degrees == 3);
  CHECK(sparse.n == std::vector<int64_t>{0, 3, 0, 3, 0, 3, 0, 1, 0});
  // a group that is gone before the first event says nothing
  const LogRank gone = metrics::log_rank(FollowUp({1, 1, 2, 3, 4, 5, 6}, {0, 0, 1, 1, 1, 0, 1}),
                                         std::vector<int64_t>{0, 0, 1, 1, 2, 2, 2}, 3);
  check_near(gone.chi2, 4.26315789473684);
  CHECK(gone.degrees == 1);
  check_near(gone.p, 0.0389474557420255);
}

TEST_CASE("log-rank that compares nothing has no p", "[cpu]") {
  const auto undefined = [](const LogRank& r) { return r.degrees == 0 && r.chi2 == 0.0 && std::isnan(r.p); };
  CHECK(undefined(metrics::log_rank(FollowUp(), {}, 0)));
  CHECK(undefined(metrics::log_rank(FollowUp(), {}, 2)));
  CHECK(undefined(metrics::log_rank(ten(), std::vector<int64_t>(10, 0), 1)));
  CHECK(undefined(metrics::log_rank(FollowUp({1, 2, 3, 4}, {0, 0, 0, 0}), std::vector<int64_t>{0, 1, 0, 1}, 2)));
  // the last two cases have an event together: whoever is at risk dies, so nothing varies
  CHECK(undefined(metrics::log_rank(FollowUp({1, 1}, {1, 1}), std::vector<int64_t>{0, 1}, 2)));
}

TEST_CASE("log-rank does not depend on how groups are numbered", "[cpu]") {
  const LogRank a = metrics::log_rank(ten(), std::vector<int64_t>{0, 1, 2, 0, 1, 2, 0, 1, 2, 2}, 3);
  const LogRank b = metrics::log_rank(ten(), std::vector<int64_t>{2, 0, 1, 2, 0, 1, 2, 0, 1, 1}, 3);
  check_near(b.chi2, a.chi2);
  CHECK(b.observed == std::vector<int64_t>{1, 3, 3});
}

TEST_CASE("median split puts risks above the median into the upper half", "[cpu]") {
  CHECK(metrics::median_split(std::vector<double>{4, 1, 3, 2}) == std::vector<int64_t>{1, 0, 1, 0});
  CHECK(metrics::median_split(std::vector<double>{3, 1, 2}) == std::vector<int64_t>{1, 0, 0});
  CHECK(metrics::median_split(std::vector<double>{2, 2, 2}) == std::vector<int64_t>{0, 0, 0});
  CHECK(metrics::median_split({}).empty());
}

TEST_CASE("the tail of chi-square is accurate over its whole range", "[cpu]") {
  struct Known {
    double chi2;
    int64_t degrees;
    double tail;  // R: pchisq(chi2, degrees, lower.tail = FALSE)
  };
  const std::vector<Known> values = {
      {0.5, 1, 0.479500122186953},      {3.84, 1, 0.0500435212487052},     {100, 1, 1.52397060483211e-23},
      {1400, 1, 2.10101451626413e-306}, {5, 2, 0.0820849986238988},        {5, 3, 0.171797144296733},
      {0.01, 7, 0.999999999243059},     {40, 10, 1.69447439300674e-05},    {900, 1000, 0.98928276190871},
      {1100, 1000, 0.0146144081262952}, {1300, 999, 3.39821749651548e-10}, {700, 31, 2.39553416414758e-127}};
  for (const Known& known : values) {
    CAPTURE(known.chi2, known.degrees);
    check_near(metrics::chi_square_tail(known.chi2, known.degrees), known.tail, 1e-11);
  }
  CHECK(metrics::chi_square_tail(0.0, 3) == 1.0);
  CHECK(metrics::chi_square_tail(1e-300, 4) == 1.0);
  CHECK(metrics::chi_square_tail(INFINITY, 5) == 0.0);
  CHECK_THROWS_AS(metrics::chi_square_tail(1.0, 0), Error);
  CHECK_THROWS_AS(metrics::chi_square_tail(NAN, 1), Error);
}

}  // namespace pm::test
