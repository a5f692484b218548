#include <cmath>

#include "engine/core/error.h"
#include "engine/core/rng.h"
#include "engine/metrics/classification.h"
#include "tests/support/test.h"

namespace pm::test {
namespace {

using metrics::ClassificationMetrics;
using metrics::Predictions;

// AUC from its definition: a pair of a case of class k and another case, half a point for equal scores.
double auc_by_pairs(const Predictions& p, int64_t k) {
  double points = 0.0, pairs = 0.0;
  for (int64_t i = 0; i < p.size(); ++i) {
    for (int64_t j = 0; j < p.size(); ++j) {
      if (p.label[static_cast<size_t>(i)] != k || p.label[static_cast<size_t>(j)] == k) continue;
      const double a = p.score[static_cast<size_t>(i * p.classes + k)],
                   b = p.score[static_cast<size_t>(j * p.classes + k)];
      points += a > b ? 1.0 : a == b ? 0.5 : 0.0;
      pairs += 1.0;
    }
  }
  return points / pairs;
}

}  // namespace

TEST_CASE("classification metrics of a table worked by hand", "[cpu]") {
  // confusion: class 0: 2 right, 1 taken for 1; class 1: 1 right, 1 taken for 2; class 2: 1 right
  const Predictions p{3,
                      {0, 0, 0, 1, 1, 2},
                      {0, 0, 1, 1, 2, 2},
                      {.8, .1, .1, .6, .3, .1, .2, .7, .1, .3, .6, .1, .1, .3, .6, .2, .1, .7}};
  const ClassificationMetrics m = metrics::classification_metrics(p);
  CHECK(m.n == 6);
  CHECK(m.top1 == Approx(4.0 / 6));
  CHECK(m.top5 == 1.0);
  CHECK(m.confusion == std::vector<std::vector<int64_t>>{{2, 1, 0}, {0, 1, 1}, {0, 0, 1}});
  CHECK(m.per_class[0].f1 == Approx(4.0 / 5));
  CHECK(m.per_class[1].f1 == Approx(2.0 / 4));
  CHECK(m.per_class[2].f1 == Approx(2.0 / 3));
  CHECK(m.per_class[1].precision == Approx(0.5));
  CHECK(m.per_class[0].support == 3);
  CHECK(m.macro_f1 == Approx((0.8 + 0.5 + 2.0 / 3) / 3));
  CHECK(m.balanced_accuracy == Approx((2.0 / 3 + 0.5 + 1.0) / 3));
  // class 0: .8 .6 .2 against .3 .1 .2: 3 + 3 + 1 + 1/2 of 9; class 1: .6 .3 against .1 .3 .7 .1: 3 + 2 + 1/2 of 8
  CHECK(m.per_class[0].auc == Approx(7.5 / 9));
  CHECK(m.per_class[1].auc == Approx(5.5 / 8));
  CHECK(m.per_class[2].auc == 1.0);
  CHECK(m.auc == Approx((7.5 / 9 + 5.5 / 8 + 1.0) / 3));
}

TEST_CASE("classes that are absent enter no mean", "[cpu]") {
  // of four classes: 1 has cases but none is found, 2 is predicted alone, 3 occurs nowhere
  const Predictions p{4, {0, 0, 1}, {0, 2, 0}, {.9, .1, 0, 0, .3, .1, .6, 0, .5, .4, .1, 0}};
  const ClassificationMetrics m = metrics::classification_metrics(p);
  CHECK(m.per_class[1].f1 == 0.0);
  CHECK(std::isnan(m.per_class[1].precision));
  CHECK(m.per_class[2].f1 == 0.0);
  CHECK(std::isnan(m.per_class[2].recall));
  CHECK(std::isnan(m.per_class[2].auc));
  CHECK(std::isnan(m.per_class[3].f1));
  CHECK(m.macro_f1 == Approx(0.5 / 3));        // classes 0, 1, 2
  CHECK(m.balanced_accuracy == Approx(0.25));  // classes 0, 1
  CHECK(m.auc == Approx((0.5 + 1.0) / 2));     // classes 0, 1
}

TEST_CASE("one class alone has no AUC, no case has nothing", "[cpu]") {
  const ClassificationMetrics one = metrics::classification_metrics({2, {1, 1}, {1, 0}, {.2, .8, .6, .4}});
  CHECK(std::isnan(one.auc));
  CHECK(one.balanced_accuracy == 0.5);
  const ClassificationMetrics none = metrics::classification_metrics({2, {}, {}, {}});
  CHECK(std::isnan(none.top1));
  CHECK(std::isnan(none.macro_f1));
  CHECK(none.confusion == std::vector<std::vector<int64_t>>{{0, 0}, {0, 0}});
}

TEST_CASE("AUC of two classes is that of class 1", "[cpu]") {
  // class 0's column was rounded: its ties must not enter
  const ClassificationMetrics m = metrics::classification_metrics({2, {0, 1}, {0, 0}, {1.0, 1e-9, 1.0, 2e-9}});
  CHECK(m.auc == 1.0);
  CHECK(m.per_class[0].auc == 0.5);
}

TEST_CASE("AUC equals a count pair by pair, ties included", "[cpu]") {
  for (const int levels : {2, 5, 1000}) {
    const RngState draw{3, static_cast<uint64_t>(levels)};
    Predictions p;
    p.classes = 3;
    for (int64_t i = 0; i < 120; ++i) {
      p.label.push_back(static_cast<int64_t>(uniform_at(draw, 8 * i) * 3));
      for (int64_t k = 0; k < 3; ++k) p.score.push_back(std::floor(uniform_at(draw, 8 * i + 1 + k) * levels));
      p.predicted.push_back(metrics::best_class(std::span(p.score).last(3)));
    }
    const ClassificationMetrics m = metrics::classification_metrics(p);
    for (int64_t k = 0; k < 3; ++k) {
      CHECK(std::abs(m.per_class[static_cast<size_t>(k)].auc - auc_by_pairs(p, k)) < 1e-14);
    }
  }
}

TEST_CASE("top 5 breaks ties by the number of the class", "[cpu]") {
  const std::vector<double> same(7, 0.1);
  const auto top5 = [&](int64_t label) { return metrics::classification_metrics({7, {label}, {0}, same}).top5; };
  CHECK(top5(4) == 1.0);
  CHECK(top5(5) == 0.0);
  CHECK(metrics::classification_metrics({7, {6}, {0}, {.3, .2, .1, .1, .1, .1, .15}}).top5 == 1.0);
  CHECK(metrics::best_class(std::vector<double>{.2, .4, .4}) == 1);
}

TEST_CASE("classification metrics refuse what they cannot use", "[cpu]") {
  CHECK_THROWS_AS(metrics::classification_metrics({2, {2}, {0}, {.5, .5}}), Error);
  CHECK_THROWS_AS(metrics::classification_metrics({2, {0}, {-1}, {.5, .5}}), Error);
  CHECK_THROWS_AS(metrics::classification_metrics({2, {0}, {0}, {.5}}), Error);
  CHECK_THROWS_AS(metrics::classification_metrics({2, {0}, {0}, {.5, NAN}}), Error);
}

TEST_CASE("a subset of predictions keeps rows together", "[cpu]") {
  const Predictions p{2, {0, 1}, {1, 0}, {.1, .9, .8, .2}};
  const Predictions part = p.subset(std::vector<int64_t>{1, 1, 0});
  CHECK(part.label == std::vector<int64_t>{1, 1, 0});
  CHECK(part.predicted == std::vector<int64_t>{0, 0, 1});
  CHECK(part.score == std::vector<double>{.8, .2, .8, .2, .1, .9});
}

}  // namespace pm::test
