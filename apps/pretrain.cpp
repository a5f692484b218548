// pretrain: trains a classifier on a folder of images. The command line; the run itself is in pretrain_run.cpp.
#include "apps/pretrain.h"

#include "apps/command_line.h"
#include "engine/core/check.h"

namespace pm::app {
namespace {

void add_augmentation(CLI::App& verb, PretrainOptions& options) {
  verb.add_flag_callback(
      "--no-augment", [&options] { options.augment = false; },
      "train on centre crops as they are: no crops, flips, erasing, mixup");
  verb.add_option("--crop-area", options.augmentation.min_area,
                  "smallest share of an image's area that a random crop shows; 1: no random crops")
      ->capture_default_str()
      ->check(CLI::Range(0.01, 1.0));
  verb.add_option("--erase", options.augmentation.erase, "probability that a rectangle of an image is erased")
      ->capture_default_str()
      ->check(CLI::Range(0.0, 1.0));
  verb.add_option("--mixup", options.augmentation.mixup, "alpha of the Beta distribution that mixes images; 0: none")
      ->capture_default_str()
      ->check(CLI::Range(0.0, 100.0));
}

int run(const PretrainOptions& options) {
  PM_CHECK(!options.out.empty(), UsageError, "--out: a run needs a folder to write to");
  watch_stop_signals();
  return run_pretrain(options, {io::posix_file_ops(), stop_signal});
}

}  // namespace

void add_pretrain(CLI::App& app, Command& command) {
  auto options = std::make_shared<PretrainOptions>();
  CLI::App* verb = app.add_subcommand("pretrain", "Train a classifier on a folder of images, to fine-tune from");
  verb->add_option("IMAGES", options->images,
                   "folder with train/CLASS/*.jpg or *.png and, to be judged by, val/CLASS/...")
      ->required();
  verb->add_option("--image-size", options->size,
                   "pixels of the squares that the network sees, one window each: a multiple of 32 for 6m and 21m")
      ->capture_default_str()
      ->check(CLI::PositiveNumber)
      ->type_name("PIXELS");
  verb->add_option("--batch", options->batch, "images per update of the weights")
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
  verb->add_option("--lr", options->lr,
                   "highest learning rate; falls to 0 along a cosine. Without it 1e-3 per 1,024 images of a batch")
      ->check(CLI::PositiveNumber);
  verb->add_option("--warmup", options->warmup,
                   "epochs over which the rate rises from 0 first. Without it 5, but at most a tenth of the training")
      ->check(CLI::NonNegativeNumber);
  add_augmentation(*verb, *options);
  verb->add_option("--workers", options->workers, "threads that read images ahead; 0: one per thread of the machine")
      ->capture_default_str()
      ->check(CLI::Range(0, 256));
  verb->add_flag_callback(
      "--no-graph", [raw = options.get()] { raw->graph = false; },
      "GPU: launch each kernel of a step instead of repeating a captured one");
  add_training_options(*verb, *options, "steps");
  verb->callback([options, &command] {
    options->arguments = command.arguments;
    command.exit_code = run(*options);
  });
}

}  // namespace pm::app
