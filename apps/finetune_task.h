// What a fine-tune learns from a table: classes, or time bins of survival.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "apps/finetune.h"
#include "autograd/core/variable.h"
#include "io/data/cohort.h"
#include "layers/model/pixel_mamba.h"

namespace pm::app {

constexpr int64_t kSurvivalBins = 4;

// What a slide teaches.
struct Target {
  int64_t label = 0;  // class, or time bin
  bool censored = false;
};

struct Task {
  Head head = Head::classification;
  int64_t outputs = 0;  // classes or time bins
  std::vector<std::string> class_names;
  std::vector<double> cuts;     // of the time bins, months: from the cases of the training slides
  std::vector<Target> targets;  // per slide of the cohort
};

// `train`: the slides that decide the time bins. Throws IoError when a label needs more classes than asked for.
Task make_task(const FinetuneOptions& options, const io::Cohort& cohort, const std::vector<int64_t>& train);
// One sentence about a set of slides: how many, events or classes.
std::string describe(const Task& task, const std::vector<int64_t>& members);

// Logits (1, outputs) -> the loss of one slide (1).
Variable loss_of(Context& ctx, const Task& task, const Variable& logits, const Target& target, double label_smoothing);

}  // namespace pm::app
