#include "engine/ops/elementwise/scaled_add.h"

#include "engine/cpu/core/dispatch.h"

namespace pm::cpu {

void scaled_add(const ScaledAddArgs& args) {
  dispatch_float(args.dtype, [&]<typename T>() {
    const T* a = static_cast<const T*>(args.a);
    const T* b = static_cast<const T*>(args.b);
    T* out = static_cast<T*>(args.out);
    const T alpha = static_cast<T>(args.alpha), beta = static_cast<T>(args.beta),
            constant = static_cast<T>(args.constant);
    if (b == nullptr) {
#pragma omp parallel for simd
      for (int64_t i = 0; i < args.n; ++i) out[i] = alpha * a[i] + constant;
    } else {
#pragma omp parallel for simd
      for (int64_t i = 0; i < args.n; ++i) out[i] = alpha * a[i] + beta * b[i] + constant;
    }
  });
}

}  // namespace pm::cpu
