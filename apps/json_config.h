// --config FILE: option values from a JSON object, {"lr": 1e-4, "epochs": 30}. Flags win; unknown keys are errors.
#pragma once
#include <CLI/CLI.hpp>

namespace pm::app {

// Adds --config to a verb. Keys are the long option names without dashes ("slide-mpp" or "slide_mpp").
void add_json_config(CLI::App& command);

}  // namespace pm::app
