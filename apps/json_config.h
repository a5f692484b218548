// --config FILE: option values from a JSON object, {"lr": 1e-4, "epochs": 30}. Flags win; unknown keys are errors.
#pragma once
#include <string>
#include <vector>

namespace pm::app {

// The command line with `--config FILE` replaced by the options of that file, as far as they are not given themselves. A
// key is a long option name without dashes ("slide-mpp" or "slide_mpp"); true stands for a flag, false for its absence.
// Throws ConfigError for a file that is no such object, IoError when it cannot be read.
std::vector<std::string> expand_config(const std::vector<std::string>& arguments);

}  // namespace pm::app
