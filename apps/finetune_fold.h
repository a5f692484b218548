// Training on one division of a cohort: checkpoints, validation, predictions of what was held out.
#pragma once
#include <memory>
#include <set>
#include <string>

#include "apps/finetune_predictions.h"
#include "apps/train_curves.h"
#include "apps/train_state.h"
#include "apps/train_step.h"
#include "io/checkpoint/checkpoint_store.h"
#include "io/data/line_log.h"

namespace pm::app {

struct FoldSettings {
  const FinetuneOptions& options;
  const io::Cohort& cohort;
  const io::Fold& fold;
  std::string folder;          // of its results
  std::string label;           // "fold 2", empty when there is one division alone
  uint64_t index = 0;          // its place among the folds: part of what is random
  std::set<int64_t> unusable;  // slides that cannot be opened
};

// Folders and files of a fold.
std::string checkpoint_folder(const std::string& fold_folder);
std::string summary_file(const std::string& fold_folder);  // written last: the fold is done

class FoldTrainer {
 public:
  // Continues from the newest checkpoint in the folder, if there is one. Throws IoError, ConfigError, StorageError.
  FoldTrainer(Context& ctx, const FoldSettings& settings, const RunEnvironment& environment, StopRule& rule);

  // Trains to the last epoch and writes model, predictions and summary. False when the rule stopped it: all that was learnt is in
  // a checkpoint then.
  bool run();

 private:
  // Each false when the rule stopped it.
  bool train_epoch();
  bool finish_epoch(std::vector<SlidePrediction>& predictions);
  bool predict_slides(const std::vector<int64_t>& members, std::vector<SlidePrediction>& predictions);

  void learn(const io::SlideSample& sample);
  void learn_slide(const io::SlideSample& sample);
  void skip(const io::SlideSample& sample, const std::string& reason);
  void update_weights();
  void finish(const std::vector<SlidePrediction>& predictions);
  void add_line(const nlohmann::ordered_json& line, bool print);
  void save();
  void restore();
  std::vector<int64_t> training_order(int64_t epoch) const;
  void expect_epoch();
  io::SlideSample next_sample();
  double mean_loss() const;
  bool validated_last() const;
  bool validates(int64_t epoch) const;
  const io::SlideRow& row(int64_t slide) const { return settings_.cohort.slides()[static_cast<size_t>(slide)]; }
  // Of the training slides and what they teach: a checkpoint only fits the same.
  std::string fingerprint() const;

  Context& ctx_;
  FoldSettings settings_;
  const FinetuneOptions& options_;
  const RunEnvironment& environment_;
  StopRule& rule_;
  Task task_;
  std::vector<int64_t> train_, val_, held_out_;
  PixelMamba model_;
  AdamW optimiser_;
  std::unique_ptr<WeightAverage> average_;
  io::CheckpointStore store_;
  TrainState state_;
  std::unique_ptr<io::LineLog> metrics_;
  std::unique_ptr<io::SlideLoader> loader_;
  std::unique_ptr<Progress> progress_;
  std::unique_ptr<TrainCurves> curves_;
  std::set<std::string> reported_;  // slides whose trouble was said
  int64_t updates_per_epoch_;
  int64_t expected_epoch_ = -1;  // whose training order was added to the loader last
  double last_loss_ = 0.0;       // mean over the last finished epoch
};

}  // namespace pm::app
