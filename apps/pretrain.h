// pretrain: what is asked for, and the run itself.
#pragma once
#include <optional>
#include <string>
#include <vector>

#include "apps/common.h"
#include "apps/stop_rule.h"
#include "io/data/image_augment.h"

namespace pm::app {

// A step is a batch of images and one update of the weights. The defaults are the paper's recipe.
struct PretrainOptions {
  RunOptions run;
  std::string images, out, init = "6m";
  int64_t size = 224;  // pixels; also the side of the network's windows: an image is one region
  int64_t batch = 128, epochs = 300;
  std::optional<double> lr;       // none: 1e-3 per 1,024 images of a batch
  std::optional<int64_t> warmup;  // epochs; none: 5, but at most a tenth of the training
  double weight_decay = 0.05, clip = 1.0, label_smoothing = 0.1;
  double drop_path = 0.0, ema = 0.0;
  bool augment = true;
  io::ImageAugmentOptions augmentation;
  int64_t workers = 0;                     // 0: as many as the machine has threads
  int64_t validate_every = 1;              // epochs; 0: at the end alone
  int64_t keep = 2, checkpoint_every = 0;  // steps; 0: at the end of each epoch alone
  int64_t stop_after = 0;                  // steps of this call; 0: to the end
  bool graph = true;                       // a GPU repeats its first step as a captured graph
  bool resume = false;
  std::vector<std::string> arguments;  // as typed, for config.json
};

// Trains, or goes on where a run was interrupted. Returns an exit code: kDone, or 128 + signal.
// Throws UsageError, IoError, ConfigError, StorageError, OutOfMemoryError, and Error when a loss or gradient is not finite.
int run_pretrain(const PretrainOptions& options, const RunEnvironment& environment);

}  // namespace pm::app
