// Moving average of weights: often a better model than the weights themselves.
//   update n = 1, 2, ..: average += (1 - d) * (value - average),  d = min(decay, (1 + n) / (10 + n))
// The ramp lets short runs forget where they started.
#pragma once
#include <cstdint>
#include <vector>

#include "engine/optim/adamw.h"

namespace pm {

class WeightAverage {
 public:
  // Values: float tensors, shared with the model. The average starts as a copy of them. Throws ConfigError unless
  // 0 < decay < 1.
  WeightAverage(Context& ctx, std::vector<NamedTensor> values, double decay);

  void update(Context& ctx);
  // The model takes the average and the average the model's values, bit for bit: call it twice around an evaluation.
  void exchange(Context& ctx);

  // In the order of the values. With updates(), what a checkpoint holds.
  std::vector<NamedTensor>& averages() { return averages_; }
  const std::vector<NamedTensor>& averages() const { return averages_; }
  int64_t updates() const { return updates_; }
  void set_updates(int64_t updates) { updates_ = updates; }

 private:
  std::vector<NamedTensor> values_, averages_;
  Tensor scratch_;  // as many bytes as the largest value: an exchange allocates nothing
  double decay_;
  int64_t updates_ = 0;
};

// While alive, the model has the averaged weights; without an average (null) nothing happens.
class WithAverage {
 public:
  WithAverage(Context& ctx, WeightAverage* average) : ctx_(ctx), average_(average) {
    if (average_ != nullptr) average_->exchange(ctx_);
  }
  ~WithAverage() {
    if (average_ != nullptr) average_->exchange(ctx_);
  }
  WithAverage(const WithAverage&) = delete;
  WithAverage& operator=(const WithAverage&) = delete;

 private:
  Context& ctx_;
  WeightAverage* average_;
};

}  // namespace pm
