#include "apps/training_options.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "apps/command_line.h"

namespace pm::app {

nlohmann::ordered_json shared_settings(const TrainingOptions& o) {
  return {{"init", o.init},
          {"seed", o.run.seed},
          {"precision", o.run.precision},
          {"epochs", o.epochs},
          {"weight_decay", o.weight_decay},
          {"clip", o.clip},
          {"label_smoothing", o.label_smoothing},
          {"drop_path", o.drop_path},
          {"ema", o.ema},
          {"validate_every", o.validate_every}};
}

void add_training_options(CLI::App& verb, TrainingOptions& options, const std::string& steps) {
  verb.add_option("--out", options.out, "run folder to write")->type_name("DIR");
  verb.add_option("--init", options.init,
                  "model folder to start from; a config.json, or 6m / 21m / nano, for random weights")
      ->capture_default_str()
      ->type_name("MODEL");
  verb.add_option("--epochs", options.epochs, "passes over the data")
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
  verb.add_option("--weight-decay", options.weight_decay, "of matrices")
      ->capture_default_str()
      ->check(CLI::NonNegativeNumber);
  verb.add_option("--clip", options.clip, "largest gradient norm; 0: no clipping")
      ->capture_default_str()
      ->check(CLI::NonNegativeNumber);
  verb.add_option("--label-smoothing", options.label_smoothing, "classes: share of the target spread evenly")
      ->capture_default_str()
      ->check(CLI::Range(0.0, 0.999));
  verb.add_option("--drop-path", options.drop_path,
                  "stochastic depth: probability of leaving out the last layer's block")
      ->capture_default_str()
      ->check(CLI::Range(0.0, 0.9));
  verb.add_option("--ema", options.ema,
                  "decay of a moving average of the weights, which predicts then (0.999); 0: none")
      ->capture_default_str()
      ->check(CLI::Range(0.0, 0.999999));
  verb.add_option("--validate-every", options.validate_every, "epochs between validations; 0: at the end alone")
      ->capture_default_str()
      ->check(CLI::NonNegativeNumber);
  verb.add_flag("--resume", options.resume, "go on where the run in --out was interrupted, bit for bit");
  verb.add_option("--checkpoint-every", options.checkpoint_every,
                  fmt::format("{} between checkpoints; 0: at the end of each epoch (which always has one)", steps))
      ->capture_default_str()
      ->check(CLI::NonNegativeNumber);
  verb.add_option("--keep", options.keep, "checkpoints kept, besides the best one")
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
  verb.add_option("--stop-after", options.stop_after,
                  fmt::format("stop with a checkpoint after so many {}, for queues with a time limit", steps))
      ->check(CLI::PositiveNumber)
      ->type_name("N");
  add_run_options(verb, options.run);
}

}  // namespace pm::app
