#include "engine/ops/token/region_mean.h"

#include "engine/cpu/core/dispatch.h"

namespace pm::cpu {

void region_mean(const RegionMeanArgs& args) {
  const int64_t n = args.n_regions, channels = args.channels;
  dispatch_float(args.dtype, [&]<typename T>() {
    const T* x = static_cast<const T*>(args.x);
    T* out = static_cast<T*>(args.out);
    for (int64_t b = 0; b < args.batch; ++b) {
      for (int64_t c = 0; c < channels; ++c) {
        double sum = 0.0;
        for (int64_t i = 0; i < n; ++i) sum += static_cast<double>(x[(b * n + i) * channels + c]);
        out[b * channels + c] = static_cast<T>(sum / static_cast<double>(n));
      }
    }
  });
}

void region_mean_grad(const RegionMeanGradArgs& args) {
  const int64_t n = args.n_regions, channels = args.channels;
  dispatch_float(args.dtype, [&]<typename T>() {
    const T* dout = static_cast<const T*>(args.dout);
    T* dx = static_cast<T*>(args.dx);
    for (int64_t row = 0; row < args.batch * n; ++row) {
      for (int64_t c = 0; c < channels; ++c) dx[row * channels + c] = dout[row / n * channels + c] / static_cast<T>(n);
    }
  });
}

}  // namespace pm::cpu
