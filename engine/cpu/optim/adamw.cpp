#include "engine/ops/optim/adamw.h"

#include <cmath>

#include "engine/cpu/core/dispatch.h"

namespace pm::cpu {

void adamw(const AdamWArgs& args) {
  dispatch_float(args.dtype, [&]<typename T>() {
    T* param = static_cast<T*>(args.param);
    const T* grad = static_cast<const T*>(args.grad);
    T* exp_avg = static_cast<T*>(args.exp_avg);
    T* exp_avg_sq = static_cast<T*>(args.exp_avg_sq);
    const T decay = static_cast<T>(args.decay), step_size = static_cast<T>(args.step_size);
    const T beta1 = static_cast<T>(args.beta1), rest1 = static_cast<T>(1.0 - args.beta1);
    const T beta2 = static_cast<T>(args.beta2), rest2 = static_cast<T>(1.0 - args.beta2);
    const T scale = static_cast<T>(args.inverse_sqrt_bias2), eps = static_cast<T>(args.eps);
#pragma omp parallel for simd
    for (int64_t i = 0; i < args.n; ++i) {
      exp_avg[i] = beta1 * exp_avg[i] + rest1 * grad[i];
      exp_avg_sq[i] = beta2 * exp_avg_sq[i] + rest2 * grad[i] * grad[i];
      param[i] = decay * param[i] - step_size * exp_avg[i] / (std::sqrt(exp_avg_sq[i]) * scale + eps);
    }
  });
}

}  // namespace pm::cpu
