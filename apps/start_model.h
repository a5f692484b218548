// The network that a training starts from: what --init names, with the head that the training needs.
#pragma once
#include <string>

#include "apps/common.h"

namespace pm::app {

struct ModelOutputs {
  Head head = Head::classification;
  int64_t number = 0;  // classes or time bins
};

// The layers that --init names: a model folder, a config.json, or a published name. Throws IoError, ConfigError.
ModelConfig initial_config(const std::string& init);
// The same with this head. region_size: pixels, 0: as `init` has it (no weight depends on it).
ModelConfig start_config(const std::string& init, const ModelOutputs& outputs, int64_t region_size = 0);
// The layers of `init` and every weight that fits; a head for other outputs is replaced. Says on stderr what was taken. Throws IoError, ConfigError.
PixelMamba start_model(Context& ctx, const std::string& init, const RunOptions& run, const ModelOutputs& outputs,
                       int64_t region_size = 0);

}  // namespace pm::app
