// Learning-rate schedules: plain functions of the step.
#pragma once
#include <cstdint>

namespace pm {

// Linear warm-up, then half a cosine (Loshchilov and Hutter, "SGDR", ICLR 2017, one period):
//   step < warmup: base_lr * (step + 1) / warmup
//   else         : min_lr + (base_lr - min_lr) / 2 * (1 + cos(pi * (step - warmup) / (total - warmup))); min_lr from total on
// step counts from 0. Throws ConfigError unless step >= 0 and 0 <= warmup <= total.
double cosine_schedule(int64_t step, int64_t total, int64_t warmup, double base_lr, double min_lr);

}  // namespace pm
