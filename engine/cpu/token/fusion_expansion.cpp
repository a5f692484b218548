#include "engine/ops/token/fusion_expansion.h"

#include "engine/cpu/core/dispatch.h"
#include "engine/cpu/token/expand_region.h"
#include "engine/cpu/token/region_choice.h"

namespace pm::cpu {

void fusion_expansion(const FusionExpansionArgs& args) {
  const ExpansionMap& map = args.map;
  const int64_t n = args.n_regions, n_out = n - args.k, in_values = map.in_values(), out_values = map.out_values();
  const int64_t region_len = int64_t{map.region_h} * map.region_w + 1;
  dispatch_float(args.dtype, [&]<typename T>() {
    const T* all = static_cast<const T*>(args.tokens);
    choose_regions(all, args.batch, n, region_len, map.channels, args.k, args.target, args.count);
    for (int64_t b = 0; b < args.batch; ++b) {
      const auto sources = sources_of(args.target + b * n, n, n_out);
      const T* tokens = all + b * n * in_values;
      T* out = static_cast<T*>(args.out) + b * n_out * out_values;
#pragma omp parallel
      {
        std::vector<T> mean(static_cast<size_t>(in_values));  // of one region: it stays in the cache
#pragma omp for schedule(dynamic)
        for (int64_t o = 0; o < n_out; ++o) {
          const std::vector<int64_t>& merged = sources[static_cast<size_t>(o)];
          const bool alone = merged.size() == 1;
          if (!alone) mean_of_regions(tokens, merged, mean.data(), in_values);
          expand_region(map, alone ? tokens + merged[0] * in_values : mean.data(), out + o * out_values);
        }
      }
    }
  });
}

void fusion_expansion_grad(const FusionExpansionGradArgs& args) {
  const int64_t in_values = args.map.in_values(), out_values = args.map.out_values();
  dispatch_float(args.dtype, [&]<typename T>() {
    const T* dout = static_cast<const T*>(args.dout);
#pragma omp parallel for
    for (int64_t row = 0; row < args.batch * args.n_regions; ++row) {
      const int64_t source = row / args.n_regions * args.n_out + args.target[row];
      T* dtokens = static_cast<T*>(args.dtokens) + row * in_values;
      expand_region_grad(args.map, dout + source * out_values, dtokens);
      if (args.count[source] == 1) continue;
      const T divisor = static_cast<T>(args.count[source]);
      for (int64_t i = 0; i < in_values; ++i) dtokens[i] /= divisor;
    }
  });
}

}  // namespace pm::cpu
