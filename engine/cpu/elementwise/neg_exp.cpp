#include "engine/ops/elementwise/neg_exp.h"

#include <cmath>

#include "engine/cpu/core/dispatch.h"

namespace pm::cpu {

void neg_exp(const NegExpArgs& args) {
  dispatch_float(args.dtype, [&]<typename T>() {
    const T* x = static_cast<const T*>(args.x);
    T* out = static_cast<T*>(args.out);
    for (int64_t i = 0; i < args.n; ++i) out[i] = -std::exp(x[i]);
  });
}

void neg_exp_grad(const NegExpGradArgs& args) {
  dispatch_float(args.dtype, [&]<typename T>() {
    const T* dout = static_cast<const T*>(args.dout);
    const T* out = static_cast<const T*>(args.out);
    T* dx = static_cast<T*>(args.dx);
    for (int64_t i = 0; i < args.n; ++i) dx[i] = dout[i] * out[i];
  });
}

}  // namespace pm::cpu
