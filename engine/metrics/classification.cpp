#include "engine/metrics/classification.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "engine/core/check.h"
#include "engine/metrics/summary.h"

namespace pm::metrics {
namespace {

constexpr double kUndefined = std::numeric_limits<double>::quiet_NaN();
constexpr int64_t kTop = 5;

double share(int64_t part, int64_t whole) {
  return whole > 0 ? static_cast<double>(part) / static_cast<double>(whole) : kUndefined;
}

void check(const Predictions& p) {
  const size_t n = p.label.size();
  PM_CHECK(p.classes >= 1, Error, "a classifier needs at least one class, got {}", p.classes);
  PM_CHECK(p.predicted.size() == n && p.score.size() == n * static_cast<size_t>(p.classes), Error,
           "{} labels need as many predictions and {} scores each, got {} predictions and {} scores", n, p.classes,
           p.predicted.size(), p.score.size());
  for (size_t i = 0; i < n; ++i) {
    PM_CHECK(p.label[i] >= 0 && p.label[i] < p.classes, Error, "case {}: label {} is none of {} classes", i, p.label[i],
             p.classes);
    PM_CHECK(p.predicted[i] >= 0 && p.predicted[i] < p.classes, Error, "case {}: prediction {} is none of {} classes",
             i, p.predicted[i], p.classes);
  }
  for (const double score : p.score) PM_CHECK(std::isfinite(score), Error, "a score is {}", score);
}

std::span<const double> scores_of(const Predictions& p, int64_t row) {
  return std::span(p.score).subspan(static_cast<size_t>(row * p.classes), static_cast<size_t>(p.classes));
}

bool among_top(const Predictions& p, int64_t row) {
  const std::span<const double> scores = scores_of(p, row);
  const int64_t label = p.label[static_cast<size_t>(row)];
  const double own = scores[static_cast<size_t>(label)];
  int64_t before = 0;
  for (int64_t k = 0; k < p.classes; ++k) {
    const double other = scores[static_cast<size_t>(k)];
    before += other > own || (other == own && k < label) ? 1 : 0;
  }
  return before < kTop;
}

// U / (positives * negatives). Midranks are halves of whole numbers, so twice their sum is exact.
double auc_of(const Predictions& p, int64_t k, int64_t positives, std::vector<int64_t>& order) {
  const int64_t n = p.size(), negatives = n - positives;
  if (positives == 0 || negatives == 0) return kUndefined;
  const auto score = [&](int64_t row) { return p.score[static_cast<size_t>(row * p.classes + k)]; };
  std::iota(order.begin(), order.end(), int64_t{0});
  std::sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return score(a) < score(b); });
  int64_t twice_rank_sum = 0;
  for (int64_t first = 0; first < n;) {
    int64_t last = first, tied_positives = 0;
    for (; last < n && score(order[static_cast<size_t>(last)]) == score(order[static_cast<size_t>(first)]); ++last) {
      tied_positives += p.label[static_cast<size_t>(order[static_cast<size_t>(last)])] == k ? 1 : 0;
    }
    twice_rank_sum += tied_positives * (first + 1 + last);  // ranks first + 1 .. last
    first = last;
  }
  const int64_t twice_u = twice_rank_sum - positives * (positives + 1);
  return static_cast<double>(twice_u) / 2.0 / (static_cast<double>(positives) * static_cast<double>(negatives));
}

}  // namespace

Predictions Predictions::subset(std::span<const int64_t> cases) const {
  Predictions part;
  part.classes = classes;
  for (const int64_t i : cases) {
    part.label.push_back(label[static_cast<size_t>(i)]);
    part.predicted.push_back(predicted[static_cast<size_t>(i)]);
    const std::span<const double> scores = scores_of(*this, i);
    part.score.insert(part.score.end(), scores.begin(), scores.end());
  }
  return part;
}

int64_t best_class(std::span<const double> scores) {
  return std::max_element(scores.begin(), scores.end()) - scores.begin();
}

ClassificationMetrics classification_metrics(const Predictions& p) {
  check(p);
  const auto classes = static_cast<size_t>(p.classes);
  ClassificationMetrics result;
  result.n = p.size();
  result.confusion.assign(classes, std::vector<int64_t>(classes));
  int64_t right = 0, near = 0;
  for (int64_t i = 0; i < result.n; ++i) {
    const auto label = static_cast<size_t>(p.label[static_cast<size_t>(i)]);
    const auto predicted = static_cast<size_t>(p.predicted[static_cast<size_t>(i)]);
    ++result.confusion[label][predicted];
    right += label == predicted ? 1 : 0;
    near += among_top(p, i) ? 1 : 0;
  }
  result.top1 = share(right, result.n);
  result.top5 = share(near, result.n);
  std::vector<double> f1, recall, auc;
  std::vector<int64_t> order(p.label.size());
  for (size_t k = 0; k < classes; ++k) {
    const int64_t hit = result.confusion[k][k];
    ClassMetrics own;
    int64_t predicted = 0;
    for (size_t other = 0; other < classes; ++other) {
      own.support += result.confusion[k][other];
      predicted += result.confusion[other][k];
    }
    own.precision = share(hit, predicted);
    own.recall = share(hit, own.support);
    own.f1 = share(2 * hit, own.support + predicted);
    own.auc = auc_of(p, static_cast<int64_t>(k), own.support, order);
    f1.push_back(own.f1);
    recall.push_back(own.recall);
    auc.push_back(own.auc);
    result.per_class.push_back(own);
  }
  result.macro_f1 = summarise(f1).mean;  // summarise() leaves out the classes that have no value
  result.balanced_accuracy = summarise(recall).mean;
  result.auc = classes == 2 ? auc[1] : summarise(auc).mean;
  return result;
}

}  // namespace pm::metrics
