// Right-censored survival: concordance, Kaplan-Meier curves, the log-rank test. Every number is the one that R's package
// `survival` gives (concordance with reverse = TRUE, survfit, survdiff), ties included.
//
// Sources: Harrell, Lee, Mark, "Multivariable prognostic models", Statistics in Medicine 15, 1996; Kaplan, Meier,
// "Nonparametric estimation from incomplete observations", JASA 53, 1958; Greenwood, "The natural duration of cancer", 1926;
// Mantel, "Evaluation of survival data", Cancer Chemotherapy Reports 50, 1966.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

namespace pm::metrics {

// How long each case was followed, and whether its event was seen.
//
// Times that differ by rounding alone count as tied: neighbours among the distinct times that lie within 1.5e-8 (the root of
// the machine precision) of each other, absolutely or as a share of the mean distinct time, become the earliest of them. A
// time in months computed from days in two ways would otherwise break ties at random. R does the same (`timefix`).
class FollowUp {
 public:
  FollowUp() = default;
  // event: 1 for an event seen, 0 for censored. Throws Error for lengths that disagree or a time that is not finite.
  FollowUp(std::vector<double> time, std::vector<uint8_t> event);

  int64_t size() const { return static_cast<int64_t>(time_.size()); }
  double time(int64_t i) const { return time_[static_cast<size_t>(i)]; }
  bool event(int64_t i) const { return event_[static_cast<size_t>(i)] != 0; }
  int64_t events() const;
  // The cases at these indices, with repetitions. Ties stay as they were found in the whole.
  FollowUp subset(std::span<const int64_t> cases) const;

 private:
  std::vector<double> time_;
  std::vector<uint8_t> event_;
};

// Pairs of cases of which one had its event while the other was known to be event-free, and whether the one with the event
// first had the higher risk. A case censored at the time of an event counts as event-free then. Two events at one time are no
// such pair; they are counted apart, and pairs that no event orders are not counted at all.
struct Concordance {
  int64_t concordant = 0, discordant = 0;
  int64_t tied_risk = 0;  // comparable, equal risk: count half
  int64_t tied_time = 0;  // two events at one time, risks differ
  int64_t tied_both = 0;  // two events at one time, risks equal
  // Harrell's C = (concordant + tied_risk / 2) / (concordant + discordant + tied_risk); NaN without a comparable pair.
  double index() const;
};

// risk: one finite number per case, higher is worse. O(n log n).
Concordance concordance(const FollowUp& follow_up, std::span<const double> risk);

// One distinct time of a Kaplan-Meier curve, events or not.
struct KaplanMeierStep {
  double time = 0.0;
  double survival = 1.0;  // S just after the time: product of (1 - events / at_risk) up to and with it
  double std_err = 0.0;   // Greenwood: S sqrt(sum of events / (at_risk (at_risk - events))); NaN once S is 0
  int64_t at_risk = 0;    // followed up to this time or longer
  int64_t events = 0, censored = 0;
};

// By time; empty for no cases.
std::vector<KaplanMeierStep> kaplan_meier(const FollowUp& follow_up);
// S at a time: that of the last step at or before it, 1 before the first.
double survival_at(std::span<const KaplanMeierStep> curve, double time);
// Cases followed up to a time or longer.
int64_t at_risk_at(std::span<const KaplanMeierStep> curve, double time);
// The first time with S <= 0.5. Where S stays at 0.5 for a while, the middle between the first such time and the next event,
// or the end of follow-up. NaN when the curve stays above.
double median_survival(std::span<const KaplanMeierStep> curve);

struct LogRank {
  std::vector<int64_t> n;         // (groups): cases
  std::vector<int64_t> observed;  // (groups): events
  std::vector<double> expected;   // (groups): events if all groups had one hazard
  double chi2 = 0.0;
  int64_t degrees = 0;  // of freedom: one less than the groups with expected events
  double p = 0.0;       // NaN with no degree of freedom: nothing can be compared
};

// group: of each case, 0 .. groups - 1. Groups without cases, or whose cases all left before the first event, do not count.
// Groups that are never at risk together cannot be compared either; each lowers the degrees of freedom by one.
LogRank log_rank(const FollowUp& follow_up, std::span<const int64_t> group, int64_t groups);

// 1 for a risk above the median of all, else 0: the two groups of a median split.
std::vector<int64_t> median_split(std::span<const double> risk);

// P(X > chi2) of a chi-square variable: Q(degrees / 2, chi2 / 2), the regularised upper incomplete gamma function, to a
// relative error below 1e-12 down to the smallest doubles. degrees >= 1, chi2 >= 0.
double chi_square_tail(double chi2, int64_t degrees);

}  // namespace pm::metrics
