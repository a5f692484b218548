#include "apps/finetune_task.h"

#include <algorithm>
#include <cstdio>

#include "autograd/ops/cross_entropy.h"
#include "autograd/ops/survival_nll.h"
#include "engine/core/check.h"
#include "engine/ops/loss/cross_entropy.h"

namespace pm::app {

Task make_task(const FinetuneOptions& options, const io::Cohort& cohort, const std::vector<int64_t>& train) {
  Task task;
  if (cohort.outcome == io::Outcome::survival) {
    task.head = Head::survival;
    task.outputs = kSurvivalBins;
    task.cuts = io::time_cuts(cohort, train, kSurvivalBins);
    for (const io::SlideRow& row : cohort.slides()) {
      task.targets.push_back({io::survival_bin(*row.survival_months, task.cuts), row.censored});
    }
    return task;
  }
  task.class_names = cohort.table.class_names;
  task.outputs = cohort.classes();
  for (const io::SlideRow& row : cohort.slides()) task.targets.push_back({*row.label, false});
  PM_CHECK(options.classes == 0 || task.outputs <= options.classes, IoError, "{}: label {} needs --classes {} or more",
           options.table, task.outputs - 1, task.outputs);
  task.outputs = std::max(task.outputs, options.classes);
  while (static_cast<int64_t>(task.class_names.size()) < task.outputs) {
    task.class_names.push_back(std::to_string(task.class_names.size()));
  }
  return task;
}

std::string describe(const Task& task, const std::vector<int64_t>& members) {
  if (task.head == Head::survival) {
    const auto events = std::count_if(members.begin(), members.end(), [&](int64_t slide) {
      return !task.targets[static_cast<size_t>(slide)].censored;
    });
    return fmt::format("{} slides, {} events", members.size(), events);
  }
  std::vector<int64_t> counts(static_cast<size_t>(task.outputs));
  for (const int64_t slide : members) ++counts[static_cast<size_t>(task.targets[static_cast<size_t>(slide)].label)];
  return fmt::format("{} slides, per class {}", members.size(), fmt::join(counts, ", "));
}

Variable loss_of(Context& ctx, const Task& task, const Variable& logits, const Target& target, double label_smoothing) {
  if (task.head == Head::survival) {
    const int64_t censored = target.censored ? 1 : 0;
    return survival_nll(ctx, logits, Tensor::from_host(ctx, {1}, &target.label),
                        Tensor::from_host(ctx, {1}, &censored));
  }
  return cross_entropy(ctx, logits, ops::one_hot(ctx, {target.label}, task.outputs, logits.value().dtype()),
                       label_smoothing);
}

}  // namespace pm::app
