// finetune: what is asked for, what it runs in, and the run itself.
#pragma once
#include <string>
#include <vector>

#include "apps/common.h"
#include "apps/stop_rule.h"
#include "io/data/slide_loader.h"
#include "io/data/slide_table.h"

namespace pm::app {

// A slide is a step; `accumulate` steps make an update of the weights.
struct FinetuneOptions {
  FinetuneOptions() { load.keep_background = false; }
  RunOptions run;
  io::TableOptions columns;
  io::LoaderOptions load;
  std::string table, out, init = "6m", task = "auto";
  std::string splits;  // folder of splits_k.csv, or one such file; empty: none
  int64_t folds = 0;   // 0: as the splits say, or one run over the whole table
  int64_t epochs = 100, accumulate = 8, warmup = 0, classes = 0;
  double lr = 4e-4, weight_decay = 0.05, clip = 1.0, label_smoothing = 0.0;
  double drop_path = 0.0, ema = 0.0;
  bool augment = false;
  double balance = 0.0;                    // 0: classes as they come, 1: equally often
  int64_t validate_every = 1;              // epochs; 0: at the end alone
  int64_t keep = 2, checkpoint_every = 0;  // steps; 0: at the end of each epoch alone
  int64_t stop_after = 0;                  // steps of this call; 0: to the end
  bool resume = false;
  bool check = false;                  // a dry run
  std::vector<std::string> arguments;  // as typed, for config.json
};

// Trains, or goes on where a run was interrupted. Returns an exit code: kDone, or 128 + signal.
// Throws UsageError, IoError, StorageError, OutOfMemoryError, and Error when ten slides in a row give no finite gradient.
int run_finetune(const FinetuneOptions& options, const RunEnvironment& environment);

}  // namespace pm::app
