#include "engine/ops/loss/cross_entropy.h"

#include <algorithm>
#include <cmath>

#include "engine/cpu/core/dispatch.h"

namespace pm::cpu {
namespace {

template <typename T>
double smoothed(const T* targets, int64_t c, int64_t classes, double label_smoothing) {
  return (1.0 - label_smoothing) * static_cast<double>(targets[c]) + label_smoothing / static_cast<double>(classes);
}

// log(sum exp(logits)) of one row.
template <typename T>
double log_sum_exp(const T* logits, int64_t classes) {
  const double top = static_cast<double>(*std::max_element(logits, logits + classes));
  double sum = 0.0;
  for (int64_t c = 0; c < classes; ++c) sum += std::exp(static_cast<double>(logits[c]) - top);
  return top + std::log(sum);
}

}  // namespace

void cross_entropy(const CrossEntropyArgs& args) {
  dispatch_float(args.dtype, [&]<typename T>() {
    double total = 0.0;
    for (int64_t row = 0; row < args.batch; ++row) {
      const T* logits = static_cast<const T*>(args.logits) + row * args.classes;
      const T* targets = static_cast<const T*>(args.targets) + row * args.classes;
      const double normalizer = log_sum_exp(logits, args.classes);
      for (int64_t c = 0; c < args.classes; ++c) {
        total +=
            smoothed(targets, c, args.classes, args.label_smoothing) * (normalizer - static_cast<double>(logits[c]));
      }
    }
    *static_cast<T*>(args.loss) = static_cast<T>(total / static_cast<double>(args.batch));
  });
}

void cross_entropy_grad(const CrossEntropyGradArgs& args) {
  dispatch_float(args.dtype, [&]<typename T>() {
    const double scale = static_cast<double>(*static_cast<const T*>(args.dloss)) / static_cast<double>(args.batch);
    for (int64_t row = 0; row < args.batch; ++row) {
      const T* logits = static_cast<const T*>(args.logits) + row * args.classes;
      const T* targets = static_cast<const T*>(args.targets) + row * args.classes;
      T* dlogits = static_cast<T*>(args.dlogits) + row * args.classes;
      const double normalizer = log_sum_exp(logits, args.classes);
      double mass = 0.0;
      for (int64_t c = 0; c < args.classes; ++c) mass += smoothed(targets, c, args.classes, args.label_smoothing);
      for (int64_t c = 0; c < args.classes; ++c) {
        const double probability = std::exp(static_cast<double>(logits[c]) - normalizer);
        dlogits[c] =
            static_cast<T>(scale * (mass * probability - smoothed(targets, c, args.classes, args.label_smoothing)));
      }
    }
  });
}

}  // namespace pm::cpu
