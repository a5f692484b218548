// pretrain: what is asked for, and the run itself.
#pragma once
#include <optional>
#include <string>

#include "apps/stop_rule.h"
#include "apps/training_options.h"
#include "io/data/image_augment.h"

namespace pm::app {

// A step is a batch of images and one update of the weights. The defaults are the paper's recipe.
struct PretrainOptions : TrainingOptions {
  PretrainOptions() {
    epochs = 300;
    label_smoothing = 0.1;
  }
  std::string images;
  int64_t size = 224;  // pixels; also the side of the network's windows: an image is one region
  int64_t batch = 128;
  std::optional<double> lr;       // none: 1e-3 per 1,024 images of a batch
  std::optional<int64_t> warmup;  // epochs; none: 5, but at most a tenth of the training
  bool augment = true;
  io::ImageAugmentOptions augmentation;
  int64_t workers = 0;  // 0: as many as the machine has threads
  bool graph = true;    // a GPU repeats its first step as a captured graph
};

// Trains, or goes on where a run was interrupted. Returns an exit code: kDone, or 128 + signal.
// Throws UsageError, IoError, ConfigError, StorageError, OutOfMemoryError, and Error when a loss or gradient is not finite.
int run_pretrain(const PretrainOptions& options, const RunEnvironment& environment);

}  // namespace pm::app
