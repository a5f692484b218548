#include "engine/metrics/survival.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>
#include <numeric>

#include "engine/core/check.h"
#include "engine/metrics/summary.h"

namespace pm::metrics {
namespace {

constexpr double kUndefined = std::numeric_limits<double>::quiet_NaN();
constexpr double kTimeTolerance = 0x1p-26;  // the root of the machine precision, about 1.5e-8

// Replaces each time by the earliest of the chain of distinct times that rounding may have torn apart.
void merge_ties(std::vector<double>& time) {
  std::vector<double> distinct = time;
  std::sort(distinct.begin(), distinct.end());
  distinct.erase(std::unique(distinct.begin(), distinct.end()), distinct.end());
  double mean = 0.0;
  for (const double t : distinct) mean += std::abs(t) / static_cast<double>(distinct.size());
  std::vector<double> starts;
  for (size_t i = 0; i < distinct.size(); ++i) {
    const double gap = i == 0 ? std::numeric_limits<double>::infinity() : distinct[i] - distinct[i - 1];
    if (!(gap <= kTimeTolerance || gap <= kTimeTolerance * mean)) starts.push_back(distinct[i]);
  }
  if (starts.size() == distinct.size()) return;
  for (double& t : time) t = *(std::upper_bound(starts.begin(), starts.end(), t) - 1);
}

std::vector<int64_t> order_by_time(const FollowUp& follow_up) {
  std::vector<int64_t> order(static_cast<size_t>(follow_up.size()));
  std::iota(order.begin(), order.end(), int64_t{0});
  std::sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return follow_up.time(a) < follow_up.time(b); });
  return order;
}

// How many of the added values lie below a rank; both in O(log n) (Fenwick, 1994).
class RankCounts {
 public:
  explicit RankCounts(int64_t ranks) : tree_(static_cast<size_t>(ranks) + 1) {}

  void add(int64_t rank) {
    for (auto i = static_cast<size_t>(rank) + 1; i < tree_.size(); i += i & (~i + 1)) ++tree_[i];
    ++total_;
  }
  int64_t below(int64_t rank) const {
    int64_t count = 0;
    for (auto i = static_cast<size_t>(rank); i > 0; i -= i & (~i + 1)) count += tree_[i];
    return count;
  }
  int64_t total() const { return total_; }

 private:
  std::vector<int64_t> tree_;  // tree_[i] counts the ranks from i - (lowest bit of i) to i - 1
  int64_t total_ = 0;
};

// The distinct risks in rising order are ranks 0, 1, ..; returns how many there are.
int64_t rank_risks(std::span<const double> risk, std::vector<int64_t>& rank) {
  std::vector<double> distinct(risk.begin(), risk.end());
  std::sort(distinct.begin(), distinct.end());
  distinct.erase(std::unique(distinct.begin(), distinct.end()), distinct.end());
  for (const double r : risk) rank.push_back(std::lower_bound(distinct.begin(), distinct.end(), r) - distinct.begin());
  return static_cast<int64_t>(distinct.size());
}

// Solves V x = b for a covariance matrix and returns b x and the rank of V. V may be singular: pivots that rounding alone
// keeps from zero are left out, and b has no part in those directions. Cholesky with the largest pivot first.
struct QuadraticForm {
  double value = 0.0;
  int64_t rank = 0;
};
QuadraticForm quadratic_form(std::vector<double> v, std::vector<double> b) {
  const size_t n = b.size();
  const auto at = [&](size_t row, size_t column) -> double& { return v[row * n + column]; };
  double largest = 0.0;
  for (size_t i = 0; i < n; ++i) largest = std::max(largest, at(i, i));
  QuadraticForm form;
  std::vector<size_t> left(n);
  std::iota(left.begin(), left.end(), size_t{0});
  while (!left.empty()) {
    const auto pivot =
        std::max_element(left.begin(), left.end(), [&](size_t i, size_t j) { return at(i, i) < at(j, j); });
    const size_t k = *pivot;
    const double diagonal = at(k, k);
    if (!(diagonal > 1e-12 * largest)) break;
    left.erase(pivot);
    form.value += b[k] * b[k] / diagonal;
    ++form.rank;
    for (const size_t i : left) {
      const double factor = at(i, k) / diagonal;
      b[i] -= factor * b[k];
      for (const size_t j : left) at(i, j) -= factor * at(k, j);
    }
  }
  return form;
}

}  // namespace

FollowUp::FollowUp(std::vector<double> time, std::vector<uint8_t> event)
    : time_(std::move(time)), event_(std::move(event)) {
  PM_CHECK(time_.size() == event_.size(), Error, "{} times need as many events, got {}", time_.size(), event_.size());
  for (size_t i = 0; i < time_.size(); ++i)
    PM_CHECK(std::isfinite(time_[i]), Error, "case {}: the time is {}", i, time_[i]);
  merge_ties(time_);
}

int64_t FollowUp::events() const {
  return std::count_if(event_.begin(), event_.end(), [](uint8_t seen) { return seen != 0; });
}

FollowUp FollowUp::subset(std::span<const int64_t> cases) const {
  FollowUp part;
  part.time_.reserve(cases.size());
  part.event_.reserve(cases.size());
  for (const int64_t i : cases) {
    part.time_.push_back(time_[static_cast<size_t>(i)]);
    part.event_.push_back(event_[static_cast<size_t>(i)]);
  }
  return part;
}

double Concordance::index() const {
  const int64_t pairs = concordant + discordant + tied_risk;
  if (pairs == 0) return kUndefined;
  return (static_cast<double>(concordant) + 0.5 * static_cast<double>(tied_risk)) / static_cast<double>(pairs);
}

Concordance concordance(const FollowUp& follow_up, std::span<const double> risk) {
  const int64_t n = follow_up.size();
  PM_CHECK(static_cast<int64_t>(risk.size()) == n, Error, "{} cases need as many risks, got {}", n, risk.size());
  for (size_t i = 0; i < risk.size(); ++i)
    PM_CHECK(std::isfinite(risk[i]), Error, "case {}: the risk is {}", i, risk[i]);
  std::vector<int64_t> rank;
  RankCounts outlived(rank_risks(risk, rank));  // cases known to be event-free after the events of the current time
  const std::vector<int64_t> order = order_by_time(follow_up);
  Concordance result;
  std::vector<int64_t> ranks_here;  // of the events at the current time
  for (int64_t last = n; last > 0;) {
    int64_t first = last;
    const double now = follow_up.time(order[static_cast<size_t>(last - 1)]);
    ranks_here.clear();
    for (; first > 0 && follow_up.time(order[static_cast<size_t>(first - 1)]) == now; --first) {
      const int64_t i = order[static_cast<size_t>(first - 1)];
      if (follow_up.event(i)) {
        ranks_here.push_back(rank[static_cast<size_t>(i)]);
      } else {
        outlived.add(rank[static_cast<size_t>(i)]);
      }
    }
    std::sort(ranks_here.begin(), ranks_here.end());
    int64_t same = 0;  // events before this one in ranks_here with its rank
    for (size_t e = 0; e < ranks_here.size(); ++e) {
      const int64_t lower = outlived.below(ranks_here[e]), up_to = outlived.below(ranks_here[e] + 1);
      result.concordant += lower;
      result.tied_risk += up_to - lower;
      result.discordant += outlived.total() - up_to;
      same = e > 0 && ranks_here[e] == ranks_here[e - 1] ? same + 1 : 0;
      result.tied_both += same;
      result.tied_time += static_cast<int64_t>(e) - same;
    }
    for (const int64_t r : ranks_here) outlived.add(r);
    last = first;
  }
  return result;
}

std::vector<KaplanMeierStep> kaplan_meier(const FollowUp& follow_up) {
  const std::vector<int64_t> order = order_by_time(follow_up);
  std::vector<KaplanMeierStep> curve;
  int64_t at_risk = follow_up.size();
  double survival = 1.0, greenwood = 0.0;
  for (size_t next = 0; next < order.size();) {
    KaplanMeierStep step;
    step.time = follow_up.time(order[next]);
    step.at_risk = at_risk;
    for (; next < order.size() && follow_up.time(order[next]) == step.time; ++next) {
      ++(follow_up.event(order[next]) ? step.events : step.censored);
    }
    const auto risked = static_cast<double>(at_risk), died = static_cast<double>(step.events);
    survival *= (risked - died) / risked;
    if (step.events < at_risk) greenwood += died / (risked * (risked - died));
    step.survival = survival;
    step.std_err = survival > 0.0 ? survival * std::sqrt(greenwood) : kUndefined;
    at_risk -= step.events + step.censored;
    curve.push_back(step);
  }
  return curve;
}

double survival_at(std::span<const KaplanMeierStep> curve, double time) {
  const auto after =
      std::partition_point(curve.begin(), curve.end(), [&](const auto& step) { return step.time <= time; });
  return after == curve.begin() ? 1.0 : (after - 1)->survival;
}

int64_t at_risk_at(std::span<const KaplanMeierStep> curve, double time) {
  const auto from =
      std::partition_point(curve.begin(), curve.end(), [&](const auto& step) { return step.time < time; });
  return from == curve.end() ? 0 : from->at_risk;
}

double median_survival(std::span<const KaplanMeierStep> curve) {
  constexpr double kTolerance = 0x1p-26;  // a product of fractions reaches 0.5 up to rounding alone
  const auto below = [&](double level) {
    return std::partition_point(curve.begin(), curve.end(), [&](const auto& step) { return step.survival > level; });
  };
  const auto reached = below(0.5 + kTolerance), passed = below(0.5 - kTolerance);
  if (reached == curve.end()) return kUndefined;
  return 0.5 * (reached->time + (passed == curve.end() ? curve.back() : *passed).time);
}

LogRank log_rank(const FollowUp& follow_up, std::span<const int64_t> group, int64_t groups) {
  const int64_t n = follow_up.size();
  PM_CHECK(static_cast<int64_t>(group.size()) == n, Error, "{} cases need as many groups, got {}", n, group.size());
  PM_CHECK(groups >= 0, Error, "the number of groups is {}", groups);
  const auto count = static_cast<size_t>(groups);
  LogRank result;
  result.n.resize(count);
  result.observed.resize(count);
  result.expected.resize(count);
  for (size_t i = 0; i < group.size(); ++i) {
    PM_CHECK(group[i] >= 0 && group[i] < groups, Error, "case {}: group {} is none of {}", i, group[i], groups);
    ++result.n[static_cast<size_t>(group[i])];
  }
  const std::vector<int64_t> order = order_by_time(follow_up);
  std::vector<int64_t> at_risk = result.n;
  std::vector<double> variance(count * count);  // of observed - expected; hypergeometric at each time of an event
  for (size_t next = 0; next < order.size();) {
    const double now = follow_up.time(order[next]);
    const auto risked = static_cast<double>(order.size() - next);
    size_t last = next;
    double died = 0.0;
    for (; last < order.size() && follow_up.time(order[last]) == now; ++last) {
      if (!follow_up.event(order[last])) continue;
      died += 1.0;
      ++result.observed[static_cast<size_t>(group[static_cast<size_t>(order[last])])];
    }
    const double scale = risked > 1.0 ? died * (risked - died) / (risked * risked * (risked - 1.0)) : 0.0;
    for (size_t j = 0; died > 0.0 && j < count; ++j) {
      const auto own = static_cast<double>(at_risk[j]);
      if (at_risk[j] == 0) continue;
      result.expected[j] += died * own / risked;
      for (size_t k = 0; k < count; ++k) {
        const auto other = static_cast<double>(at_risk[k]);
        variance[j * count + k] += scale * own * (j == k ? risked - own : -other);
      }
    }
    for (; next < last; ++next) --at_risk[static_cast<size_t>(group[static_cast<size_t>(order[next])])];
  }
  std::vector<size_t> kept;  // the differences of all groups sum to zero: the first is left out
  for (size_t j = 0; j < count; ++j) {
    if (result.expected[j] > 0.0) kept.push_back(j);
  }
  if (!kept.empty()) kept.erase(kept.begin());
  std::vector<double> v, difference;
  for (const size_t j : kept) {
    difference.push_back(static_cast<double>(result.observed[j]) - result.expected[j]);
    for (const size_t k : kept) v.push_back(variance[j * count + k]);
  }
  const QuadraticForm form = quadratic_form(std::move(v), std::move(difference));
  result.chi2 = form.value;
  result.degrees = form.rank;
  result.p = form.rank > 0 ? chi_square_tail(form.value, form.rank) : kUndefined;
  return result;
}

std::vector<int64_t> median_split(std::span<const double> risk) {
  const double middle = median({risk.begin(), risk.end()});
  std::vector<int64_t> half;
  for (const double r : risk) half.push_back(r > middle ? 1 : 0);
  return half;
}

double chi_square_tail(double chi2, int64_t degrees) {
  PM_CHECK(degrees >= 1 && chi2 >= 0.0, Error,
           "a chi-square tail needs chi2 >= 0 and at least one degree of freedom, got {}, {}", chi2, degrees);
  if (chi2 == 0.0) return 1.0;
  // With y = chi2 / 2 and a = degrees / 2, a whole or half number, Q(a + 1, y) = Q(a, y) + y^a e^-y / Gamma(a + 1):
  //   Q(1/2, y) = erfc(sqrt(y)),  Q(1, y) = e^-y.
  // All terms are positive, so nothing cancels. They are summed as logarithms: e^-y alone may underflow.
  const double y = 0.5 * chi2;
  if (std::isinf(y)) return 0.0;
  const bool odd = degrees % 2 == 1;
  double a = odd ? 0.5 : 1.0;
  double tail = odd ? std::erfc(std::sqrt(y)) : std::exp(-y);
  double log_term =
      std::log(y) * a - y - (odd ? std::log(0.5 * std::sqrt(std::numbers::pi)) : 0.0);  // Gamma(3/2), Gamma(2)
  for (; 2.0 * a < static_cast<double>(degrees); a += 1.0) {
    tail += std::exp(log_term);
    log_term += std::log(y) - std::log(a + 1.0);
  }
  return std::min(tail, 1.0);
}

}  // namespace pm::metrics
