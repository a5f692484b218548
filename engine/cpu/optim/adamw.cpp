#include "engine/ops/optim/adamw.h"

#include <cmath>

#include "engine/cpu/core/dispatch.h"
#include "engine/ops/optim/global_norm.h"

namespace pm::cpu {

void set_learning_rate(const SetLearningRateArgs& args) { args.clock[0] = args.lr; }

void adamw(const AdamWArgs& args) {
  const double count = args.clock[1] + 1.0;
  args.clock[1] = count;
  const double bias1 = 1.0 - std::pow(args.step.beta1, count), bias2 = 1.0 - std::pow(args.step.beta2, count);
  dispatch_float(args.dtype, [&]<typename T>() {
    double factor = args.step.grad_scale;
    if (args.norm != nullptr)
      factor *= clip_factor(static_cast<double>(*static_cast<const T*>(args.norm)), args.step.max_norm);
    const T f = static_cast<T>(factor);
    const T beta1 = static_cast<T>(args.step.beta1), rest1 = static_cast<T>(1.0 - args.step.beta1);
    const T beta2 = static_cast<T>(args.step.beta2), rest2 = static_cast<T>(1.0 - args.step.beta2);
    const T scale = static_cast<T>(1.0 / std::sqrt(bias2)), eps = static_cast<T>(args.step.eps);
    for (const AdamWArgs::Item& item : args.items) {
      T* param = static_cast<T*>(item.param);
      const T* grad = static_cast<const T*>(item.grad);
      T* exp_avg = static_cast<T*>(item.exp_avg);
      T* exp_avg_sq = static_cast<T*>(item.exp_avg_sq);
      const double rate = args.clock[0] * item.lr_scale;
      const T decay = static_cast<T>(1.0 - rate * item.weight_decay), step_size = static_cast<T>(rate / bias1);
#pragma omp parallel for simd
      for (int64_t i = 0; i < item.n; ++i) {
        const T g = f * grad[i];
        exp_avg[i] = beta1 * exp_avg[i] + rest1 * g;
        exp_avg_sq[i] = beta2 * exp_avg_sq[i] + rest2 * g * g;
        param[i] = decay * param[i] - step_size * exp_avg[i] / (std::sqrt(exp_avg_sq[i]) * scale + eps);
      }
    }
  });
}

}  // namespace pm::cpu
