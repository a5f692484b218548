// What a training knows besides tensors, and the checkpoint that holds both. A step of `finetune` is a slide, one of `pretrain` a
// batch of images.
#pragma once
#include <map>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>

#include "engine/optim/adamw.h"
#include "engine/optim/ema.h"
#include "io/checkpoint/checkpoint_store.h"
#include "io/data/file_ops.h"
#include "layers/model/pixel_mamba.h"

namespace pm::app {

struct TrainState {
  int64_t epoch = 0;        // the one that goes on
  int64_t position = 0;     // steps of it that lie behind; all of them: its end has to be reported
  int64_t step = 0;         // steps that lie behind since the first epoch: the N of step-N
  int64_t update = 0;       // updates of the weights that lie behind: where the learning rate stands
  int64_t accumulated = 0;  // slides whose gradients wait for the next update
  // Of the update that goes on, or of the last one while none does.
  double update_loss = 0.0;  // sum over its steps
  int64_t update_slides = 0;
  // Over the epoch that goes on.
  double loss_sum = 0.0, seconds = 0.0, lr = 0.0, grad_norm = 0.0;
  int64_t learnt = 0, correct = 0;
  int64_t windows = 0, left_out = 0;  // of the slides read: all windows, and those without tissue that were left out
  // Over the run.
  int64_t skipped = 0, skipped_in_a_row = 0, unreadable = 0;
  std::optional<double> best_loss;  // lowest mean loss on the validation set
  int64_t metrics_bytes = 0;        // of metrics.jsonl
  RngState rng;
};

// Of the data that a training learns from: a checkpoint fits the same alone. FNV-1a, 64 bits.
class Fingerprint {
 public:
  void add(const std::string& text);
  std::string text() const;

 private:
  uint64_t hash_ = 0xcbf29ce484222325u;
};

// The parts that make a training continue bit for bit.
struct Trainable {
  PixelMamba& model;
  AdamW& optimiser;
  WeightAverage* average;  // null: none
};

// Fills a checkpoint folder:
//   config.json, model.safetensors   the model as it predicts (the average of the weights where there is one)
//   training.safetensors             value.*, exp_avg.*, exp_avg_sq.*, average.*, and grad.* in the middle of an accumulation
//   state.json                       TrainState; `fingerprint` of the data it was trained on
void write_checkpoint(Context& ctx, const std::string& folder, const Trainable& parts, const TrainState& state,
                      const std::string& fingerprint, io::FileOps& files);
// Puts everything back. Nothing is changed unless all of it can be read and fits. Throws IoError; ConfigError when the
// checkpoint is whole but belongs to other data or another model.
TrainState read_checkpoint(Context& ctx, const std::string& folder, Trainable& parts, const std::string& fingerprint);
// From the newest checkpoint of the store that can be read; damaged ones are named on stderr and discarded. Nothing where there is
// none. Throws ConfigError as read_checkpoint does.
std::optional<TrainState> restore_newest(Context& ctx, io::CheckpointStore& store, Trainable parts,
                                         const std::string& fingerprint);
// After a validation at the end of an epoch: lets `best` point to the checkpoint of this step when no earlier loss was as low.
void mark_if_best(io::CheckpointStore& store, TrainState& state, double validation_loss);
// The state alone. Throws IoError.
TrainState read_state(const std::string& folder);

}  // namespace pm::app
