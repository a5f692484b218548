#include "engine/optim/schedule.h"

#include <cmath>
#include <numbers>

#include "engine/core/check.h"

namespace pm {

double cosine_schedule(int64_t step, int64_t total, int64_t warmup, double base_lr, double min_lr) {
  PM_CHECK(step >= 0 && warmup >= 0 && warmup <= total, ConfigError,
           "cosine_schedule: expected step >= 0 and 0 <= warmup <= total, got step {}, warmup {}, total {}", step,
           warmup, total);
  if (step < warmup) return base_lr * static_cast<double>(step + 1) / static_cast<double>(warmup);
  if (step >= total) return min_lr;
  const double progress = static_cast<double>(step - warmup) / static_cast<double>(total - warmup);
  return min_lr + 0.5 * (base_lr - min_lr) * (1.0 + std::cos(std::numbers::pi * progress));
}

}  // namespace pm
