// The options that `finetune` and `pretrain` share.
#pragma once
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "apps/common.h"

namespace pm::app {

// A step is a slide of `finetune`, a batch of `pretrain`.
struct TrainingOptions {
  RunOptions run;
  std::string out, init = "6m";
  int64_t epochs = 100;
  double weight_decay = 0.05, clip = 1.0, label_smoothing = 0.0;
  double drop_path = 0.0, ema = 0.0;
  int64_t validate_every = 1;              // epochs; 0: at the end alone
  int64_t keep = 2, checkpoint_every = 0;  // steps; 0: at the end of each epoch alone
  int64_t stop_after = 0;                  // steps of this call; 0: to the end
  bool resume = false;
  std::vector<std::string> arguments;  // as typed, for config.json
};

// Of these, what decides the result.
nlohmann::ordered_json shared_settings(const TrainingOptions& options);

}  // namespace pm::app
