#include "engine/ops/elementwise/uniform.h"

#include <cmath>

#include "engine/cpu/core/dispatch.h"

namespace pm::cpu {

void uniform(const UniformArgs& args) {
  dispatch_float(args.dtype, [&]<typename T>() {
    T* out = static_cast<T*>(args.out);
    const double width = args.high - args.low;
#pragma omp parallel for
    for (int64_t i = 0; i < args.n; ++i) out[i] = static_cast<T>(std::fma(width, uniform_at(args.draw, i), args.low));
  });
}

}  // namespace pm::cpu
