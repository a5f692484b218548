#include "engine/ops/token/region_fusion.h"

#include "engine/cpu/core/dispatch.h"
#include "engine/cpu/token/region_choice.h"

namespace pm::cpu {

void region_fusion(const RegionFusionArgs& args) {
  const int64_t n = args.n_regions, n_out = n - args.k, values = args.region_len * args.channels;
  dispatch_float(args.dtype, [&]<typename T>() {
    const T* all = static_cast<const T*>(args.tokens);
    choose_regions(all, args.batch, n, args.region_len, args.channels, args.k, args.target, args.count);
    for (int64_t b = 0; b < args.batch; ++b) {
      const auto sources = sources_of(args.target + b * n, n, n_out);
      T* out = static_cast<T*>(args.out) + b * n_out * values;
#pragma omp parallel for schedule(dynamic)
      for (int64_t o = 0; o < n_out; ++o) {
        mean_of_regions(all + b * n * values, sources[static_cast<size_t>(o)], out + o * values, values);
      }
    }
  });
}

void region_fusion_grad(const RegionFusionGradArgs& args) {
  dispatch_float(args.dtype, [&]<typename T>() {
    const T* dout = static_cast<const T*>(args.dout);
    T* dtokens = static_cast<T*>(args.dtokens);
#pragma omp parallel for
    for (int64_t row = 0; row < args.batch * args.n_regions; ++row) {
      const int64_t source = row / args.n_regions * args.n_out + args.target[row];
      const T divisor = static_cast<T>(args.count[source]);
      for (int64_t i = 0; i < args.region_values; ++i) {
        dtokens[row * args.region_values + i] = dout[source * args.region_values + i] / divisor;
      }
    }
  });
}

}  // namespace pm::cpu
