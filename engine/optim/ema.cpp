#include "engine/optim/ema.h"

#include <algorithm>
#include <utility>

#include "engine/core/check.h"
#include "engine/ops/elementwise/scaled_add.h"

namespace pm {

WeightAverage::WeightAverage(Context& ctx, std::vector<NamedTensor> values, double decay)
    : values_(std::move(values)), decay_(decay) {
  PM_CHECK(decay > 0.0 && decay < 1.0, ConfigError, "the decay of a weight average must lie between 0 and 1, got {}",
           decay);
  size_t largest = 0;
  for (const auto& [name, value] : values_) {
    averages_.push_back({name, value.copy_to(ctx)});
    largest = std::max(largest, value.bytes());
  }
  scratch_ = Tensor::empty(ctx, {static_cast<int64_t>(largest)}, DType::u8);
}

void WeightAverage::update(Context& ctx) {
  ++updates_;
  const auto n = static_cast<double>(updates_);
  const double d = std::min(decay_, (1.0 + n) / (10.0 + n));
  for (size_t i = 0; i < values_.size(); ++i) {
    ops::scaled_add_in_place(ctx, averages_[i].value, d, values_[i].value, 1.0 - d);
  }
}

void WeightAverage::exchange(Context& ctx) {
  for (size_t i = 0; i < values_.size(); ++i) {
    Tensor& value = values_[i].value;
    Tensor& average = averages_[i].value;
    ctx.backend().copy_within(scratch_.raw(), value.raw(), value.bytes());
    ctx.backend().copy_within(value.raw(), average.raw(), value.bytes());
    ctx.backend().copy_within(average.raw(), scratch_.raw(), value.bytes());
  }
}

}  // namespace pm
