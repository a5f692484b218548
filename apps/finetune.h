// finetune: what is asked for, what it runs in, and the run itself.
#pragma once
#include <string>

#include "apps/stop_rule.h"
#include "apps/training_options.h"
#include "io/data/slide_loader.h"
#include "io/data/slide_table.h"

namespace pm::app {

// A slide is a step; `accumulate` steps make an update of the weights.
struct FinetuneOptions : TrainingOptions {
  FinetuneOptions() { load.keep_background = false; }
  io::TableOptions columns;
  io::LoaderOptions load;
  std::string table, task = "auto";
  std::string splits;  // folder of splits_k.csv, or one such file; empty: none
  int64_t folds = 0;   // 0: as the splits say, or one run over the whole table
  int64_t accumulate = 8, warmup = 0, classes = 0;
  double lr = 4e-4;
  bool augment = false;
  double balance = 0.0;  // 0: classes as they come, 1: equally often
  bool check = false;    // a dry run
};

// Trains, or goes on where a run was interrupted. Returns an exit code: kDone, or 128 + signal.
// Throws UsageError, IoError, StorageError, OutOfMemoryError, and Error when ten slides in a row give no finite gradient.
int run_finetune(const FinetuneOptions& options, const RunEnvironment& environment);

}  // namespace pm::app
