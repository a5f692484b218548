// The curves of a training as TensorBoard reads them: one event file per start of the program, in the folder of metrics.jsonl.
#pragma once
#include <functional>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>

#include "apps/train_state.h"
#include "io/report/event_file.h"

namespace pm::app {

// Curves are not worth a run: what goes wrong with the file is said once, through `note`, and the training goes on without it.
//
// Points of the update train/update_loss (mean over its slides), train/lr, train/grad_norm; of the epoch train/loss,
// train/accuracy, train/seconds, train/skipped and validation/*. The step is the number of slides. What was logged after
// the checkpoint that a run resumes from is void there; a checkpoint at the end of an epoch comes before the points of that
// epoch, so that resuming repeats these and the update of that step.
class TrainCurves {
 public:
  // `state`: where the training goes on, `slides`: of an epoch.
  TrainCurves(const std::string& folder, const TrainState& state, int64_t slides,
              std::function<void(const std::string&)> note);
  // After the weights were updated.
  void add_update(const TrainState& state);
  // `line` of metrics.jsonl.
  void add_epoch(const TrainState& state, const nlohmann::ordered_json& line);
  // Before a checkpoint is written, so that the curves reach as far as it does.
  void flush();

 private:
  void add(const std::string& tag, int64_t step, double value);
  template <typename Work>
  void guarded(Work&& work);

  std::function<void(const std::string&)> note_;
  std::unique_ptr<io::EventFile> file_;  // null: it failed
};

}  // namespace pm::app
