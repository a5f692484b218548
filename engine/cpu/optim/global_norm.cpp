#include "engine/ops/optim/global_norm.h"

#include <algorithm>
#include <cmath>

#include "engine/cpu/core/dispatch.h"

namespace pm::cpu {
namespace {

constexpr int64_t kSpan = int64_t{1} << 16;  // elements of one partial sum: the order does not depend on the threads

template <typename T>
double sum_of_squares(const T* values, int64_t n) {
  const int64_t spans = (n + kSpan - 1) / kSpan;
  std::vector<double> partials(static_cast<size_t>(spans), 0.0);
#pragma omp parallel for
  for (int64_t span = 0; span < spans; ++span) {
    double sum = 0.0;
    for (int64_t i = span * kSpan; i < std::min(n, (span + 1) * kSpan); ++i)
      sum += static_cast<double>(values[i]) * values[i];
    partials[static_cast<size_t>(span)] = sum;
  }
  double total = 0.0;
  for (const double partial : partials) total += partial;
  return total;
}

}  // namespace

void global_norm(const GlobalNormArgs& args) {
  dispatch_float(args.dtype, [&]<typename T>() {
    double total = 0.0;
    for (const auto& item : args.items) total += sum_of_squares(static_cast<const T*>(item.data), item.n);
    *static_cast<T*>(args.norm) = static_cast<T>(args.scale * std::sqrt(total));
  });
}

}  // namespace pm::cpu
