#include "engine/ops/norm/rms_norm.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "engine/cpu/core/dispatch.h"

namespace pm::cpu {
namespace {

// The rows are cut into this many runs whatever the number of threads, so that dweight has one order of summation.
constexpr int64_t kRuns = 64;

template <typename T>
T row_scale(const T* x, int64_t channels, T eps) {
  T squares = 0;
#pragma omp simd reduction(+ : squares)
  for (int64_t c = 0; c < channels; ++c) squares += x[c] * x[c];
  return T{1} / std::sqrt(squares / static_cast<T>(channels) + eps);
}

// One row of dx, plus `addend` where there is one; adds the row's share of dweight to `sums`.
template <typename T>
void row_grad(const T* dout, const T* x, const T* weight, const T* addend, T* dx, double* sums, int64_t channels,
              T eps) {
  const T scale = row_scale(x, channels, eps);
  T dot = 0;
#pragma omp simd reduction(+ : dot)
  for (int64_t c = 0; c < channels; ++c) dot += weight[c] * dout[c] * x[c];
  const T projection = dot * scale * scale * scale / static_cast<T>(channels);
#pragma omp simd
  for (int64_t c = 0; c < channels; ++c) {
    const T through_norm = scale * weight[c] * dout[c] - x[c] * projection;
    dx[c] = addend != nullptr ? through_norm + addend[c] : through_norm;
    sums[c] += static_cast<double>(dout[c] * x[c] * scale);
  }
}

}  // namespace

void rms_norm(const RmsNormArgs& args) {
  dispatch_float(args.dtype, [&]<typename T>() {
    const T* x = static_cast<const T*>(args.x);
    const T* weight = static_cast<const T*>(args.weight);
    T* out = static_cast<T*>(args.out);
    const int64_t channels = args.channels;
    const T eps = static_cast<T>(args.eps);
#pragma omp parallel for
    for (int64_t row = 0; row < args.rows; ++row) {
      const T* source = x + row * channels;
      T* target = out + row * channels;
      const T scale = row_scale(source, channels, eps);
#pragma omp simd
      for (int64_t c = 0; c < channels; ++c) target[c] = source[c] * scale * weight[c];
    }
  });
}

void rms_norm_grad(const RmsNormGradArgs& args) {
  dispatch_float(args.dtype, [&]<typename T>() {
    const T* dout = static_cast<const T*>(args.dout);
    const T* x = static_cast<const T*>(args.x);
    const T* weight = static_cast<const T*>(args.weight);
    const T* addend = static_cast<const T*>(args.addend);
    T* dx = static_cast<T*>(args.dx);
    T* dweight = static_cast<T*>(args.dweight);
    const int64_t channels = args.channels, run_rows = (args.rows + kRuns - 1) / kRuns;
    const T eps = static_cast<T>(args.eps);
    std::vector<double> sums(static_cast<size_t>(kRuns * channels), 0.0);
#pragma omp parallel for schedule(static, 1)
    for (int64_t run = 0; run < kRuns; ++run) {
      const int64_t end = std::min(args.rows, (run + 1) * run_rows);
      for (int64_t row = run * run_rows; row < end; ++row) {
        const int64_t at = row * channels;
        row_grad(dout + at, x + at, weight, addend != nullptr ? addend + at : nullptr, dx + at,
                 sums.data() + run * channels, channels, eps);
      }
    }
    for (int64_t c = 0; c < channels; ++c) {
      double total = 0.0;
      for (int64_t run = 0; run < kRuns; ++run) total += sums[static_cast<size_t>(run * channels + c)];
      dweight[c] = static_cast<T>(total);
    }
  });
}

}  // namespace pm::cpu
