#include "engine/ops/elementwise/cast.h"

#include "engine/cpu/core/dispatch.h"

namespace pm::cpu {

void cast(const CastArgs& args) {
  dispatch_float(args.from, [&]<typename From>() {
    dispatch_float(args.to, [&]<typename To>() {
      const From* x = static_cast<const From*>(args.x);
      To* out = static_cast<To*>(args.out);
#pragma omp parallel for simd
      for (int64_t i = 0; i < args.n; ++i) out[i] = static_cast<To>(x[i]);
    });
  });
}

}  // namespace pm::cpu
