// Metrics of a classifier on labelled cases.
//
// With TP, FP and FN of a class against the rest:
//   recall = TP / (TP + FN), precision = TP / (TP + FP), F1 = 2 TP / (2 TP + FP + FN)
//   macro F1           mean F1 over the classes that occur among labels or predictions
//   balanced accuracy  mean recall over the classes that occur among labels
//   AUC of a class     probability that a case of the class scores higher on it than a case of another, ties count half
//                      (Mann-Whitney U by midranks)
//   macro AUC          mean over the classes that have cases of their own and of others; with two classes in all, that of class 1
// A class that occurs nowhere enters no mean: it neither helps nor harms. A class that is predicted but has no cases has F1 0
// and enters macro F1 alone. This is what scikit-learn computes by default.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

namespace pm::metrics {

// Cases by rows, each with a label, a predicted class and a score per class.
struct Predictions {
  int64_t classes = 0;
  std::vector<int64_t> label;      // (n), 0 .. classes - 1
  std::vector<int64_t> predicted;  // (n), 0 .. classes - 1
  std::vector<double> score;       // (n, classes), finite; probabilities or anything that grows with them

  int64_t size() const { return static_cast<int64_t>(label.size()); }
  // The cases at these indices, with repetitions.
  Predictions subset(std::span<const int64_t> cases) const;
};

// Of one class against the rest; NaN where the divisor is zero.
struct ClassMetrics {
  int64_t support = 0;  // cases of the class
  double precision = 0.0, recall = 0.0, f1 = 0.0, auc = 0.0;
};

struct ClassificationMetrics {
  int64_t n = 0;
  double top1 = 0.0;  // share of cases whose predicted class is right
  double top5 =
      0.0;  // share of cases whose class is among the five highest scores; of equal scores the lower class comes first
  double macro_f1 = 0.0, balanced_accuracy = 0.0;
  double auc = 0.0;                             // NaN when no class can be told from others
  std::vector<ClassMetrics> per_class;          // (classes)
  std::vector<std::vector<int64_t>> confusion;  // (classes, classes): rows are labels, columns predictions
};

// Throws Error for lengths that disagree, a class out of range or a score that is not finite. With no case every metric is NaN.
ClassificationMetrics classification_metrics(const Predictions& predictions);

// Highest score of a row; of equal scores the lower class.
int64_t best_class(std::span<const double> scores);

}  // namespace pm::metrics
