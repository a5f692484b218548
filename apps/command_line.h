// What the subcommands share where they declare their options. Apart from apps/common.h: CLI11 takes seconds to compile.
#pragma once
#include <CLI/CLI.hpp>
#include <string>
#include <vector>

#include "apps/common.h"

namespace pm::app {

void add_run_options(CLI::App& command, RunOptions& options);

struct TrainingOptions;
// `steps`: what a step is called, "slides" or "steps". With the run options.
void add_training_options(CLI::App& verb, TrainingOptions& options, const std::string& steps);

// For options that take a finite number above 0. (CLI11's own check answers with all 309 digits of the largest double.)
CLI::Validator positive_number();
// For unsigned numbers: CLI11 takes -1 for the largest.
CLI::Validator whole_number();

// Each adds one subcommand and stores the exit code when it was chosen and has run.
struct Command {
  std::vector<std::string> arguments;  // as typed, without the program's name
  int exit_code = kDone;
};
void add_infer(CLI::App& app, Command& command);
void add_pretrain(CLI::App& app, Command& command);
void add_finetune(CLI::App& app, Command& command);
void add_evaluate(CLI::App& app, Command& command);
void add_verify(CLI::App& app, Command& command);
void add_inspect(CLI::App& app, Command& command);
void add_bench(CLI::App& app, Command& command);
void add_synth(CLI::App& app, Command& command);

}  // namespace pm::app
