// The run of `pretrain`: epochs over a folder of images, checkpoints, validation, the report.
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <numeric>
#include <set>
#include <thread>

#include "apps/batch_step.h"
#include "apps/memory_check.h"
#include "apps/pretrain.h"
#include "apps/report_parts.h"
#include "apps/run_folder.h"
#include "apps/start_model.h"
#include "apps/train_curves.h"
#include "apps/train_state.h"
#include "engine/core/check.h"
#include "engine/optim/schedule.h"
#include "io/checkpoint/checkpoint_store.h"
#include "io/checkpoint/model_folder.h"
#include "io/checkpoint/preprocessing.h"
#include "io/data/atomic_file.h"
#include "io/data/file.h"
#include "io/data/line_log.h"
#include "io/data/order.h"

namespace pm::app {
namespace fs = std::filesystem;
namespace {

using Json = nlohmann::ordered_json;

constexpr double kRateFor1024 = 1e-3;
constexpr int64_t kWarmupEpochs = 5;
constexpr uint64_t kTrainingStream = uint64_t{1} << 62;  // apart from the draws of initial weights and of the order

double learning_rate(const PretrainOptions& o) {
  return o.lr ? *o.lr : kRateFor1024 * static_cast<double>(o.batch) / 1024.0;
}

int64_t warmup_epochs(const PretrainOptions& o) {
  return o.warmup ? *o.warmup : std::min(kWarmupEpochs, (o.epochs + 9) / 10);
}

// What decides the result; a resumed run must share it.
Json training_settings(const PretrainOptions& o) {
  Json json = {{"images", o.images},     {"image_size", o.size},       {"batch", o.batch},
               {"lr", learning_rate(o)}, {"warmup", warmup_epochs(o)}, {"augment", o.augment}};
  json.update(shared_settings(o));
  if (o.augment) {
    json["crop_area"] = o.augmentation.min_area;
    json["erase"] = o.augmentation.erase;
    json["mixup"] = o.augmentation.mixup;
  }
  return json;
}

io::ImageLoaderOptions loader_options(const PretrainOptions& o) {
  io::ImageLoaderOptions load;
  load.batch = o.batch;
  load.size = o.size;
  load.augment = o.augmentation;
  load.seed = o.run.seed;
  load.workers = o.workers > 0 ? o.workers : std::max<int64_t>(1, std::thread::hardware_concurrency());
  return load;
}

ModelOutputs outputs_for(const io::ImageFolder& images) {
  return {Head::classification, static_cast<int64_t>(images.classes.size())};
}

std::vector<int64_t> all_of(const std::vector<io::LabelledImage>& images) {
  std::vector<int64_t> members(images.size());
  std::iota(members.begin(), members.end(), int64_t{0});
  return members;
}

std::string fingerprint_of(const io::ImageFolder& folder) {
  Fingerprint fingerprint;
  for (const auto* set : {&folder.train, &folder.val}) {
    for (const io::LabelledImage& image : *set) {
      fingerprint.add(fmt::format("{} {}", image.label, fs::path(image.path).filename().string()));
    }
    fingerprint.add("end of set");
  }
  return fingerprint.text();
}

class Pretraining {
 public:
  // Continues from the newest checkpoint in the folder, if there is one.
  Pretraining(Context& ctx, const PretrainOptions& options, const io::ImageFolder& images, const std::string& folder,
              const RunEnvironment& environment, StopRule& rule);
  // Trains to the last epoch and writes model and summary. False when the rule stopped it: everything learnt is in a checkpoint then.
  bool run();

 private:
  bool train_epoch();
  bool finish_epoch();
  void learn(const io::ImageBatch& batch);
  void report_bad(const io::ImageBatch& batch);
  bool validates(int64_t epoch) const;
  std::optional<Json> validate();  // nothing when the rule stopped it
  void finish();
  void save();
  void restore();
  void add_line(const Json& line, bool print);
  // Of slides, should the model be run on any: what it has learnt has no resolution, and no window was left out.
  io::Preprocessing preprocessing() const {
    io::Preprocessing about;
    about.class_names = images_.classes;
    return about;
  }
  double mean_loss() const {
    return state_.learnt > 0 ? state_.loss_sum / static_cast<double>(state_.learnt) : std::nan("");
  }

  Context& ctx_;
  const PretrainOptions& options_;
  const io::ImageFolder& images_;
  std::string folder_;
  const RunEnvironment& environment_;
  StopRule& rule_;
  PixelMamba model_;
  AdamW optimiser_;
  std::unique_ptr<WeightAverage> average_;
  io::CheckpointStore store_;
  std::string fingerprint_;
  int64_t steps_;  // of an epoch
  TrainState state_;
  std::unique_ptr<BatchStep> step_;
  std::unique_ptr<io::LineLog> metrics_;
  std::unique_ptr<io::ImageLoader> loader_, val_loader_;
  std::unique_ptr<Progress> progress_;
  std::unique_ptr<TrainCurves> curves_;
  std::set<std::string> bad_;  // images whose trouble was said
  double last_loss_ = std::nan("");
  Json validation_;  // of the last validation
};

Pretraining::Pretraining(Context& ctx, const PretrainOptions& options, const io::ImageFolder& images,
                         const std::string& folder, const RunEnvironment& environment, StopRule& rule)
    : ctx_(ctx),
      options_(options),
      images_(images),
      folder_(folder),
      environment_(environment),
      rule_(rule),
      model_(start_model(ctx, options.init, options.run, outputs_for(images), options.size)),
      optimiser_(make_adamw(ctx, model_, options.weight_decay)),
      store_(folder + "/checkpoints", environment.files),
      fingerprint_(fingerprint_of(images)),
      steps_(io::batches_of(static_cast<int64_t>(images.train.size()), options.batch, /*drop_last=*/true)) {
  if (options_.ema > 0.0) average_ = std::make_unique<WeightAverage>(ctx_, values_of(model_), options_.ema);
  ctx_.rng().set_state({options_.run.seed, kTrainingStream});
  state_.rng = ctx_.rng().state();
  restore();
  ClassificationStep step{options_.label_smoothing, options_.clip, {}};
  step.forward.drop_path = options_.drop_path;
  step_ = std::make_unique<BatchStep>(ctx_, model_, optimiser_, options_.batch, options_.size, step,
                                      options_.graph && options_.drop_path == 0.0);
  metrics_ = std::make_unique<io::LineLog>(folder_ + "/metrics.jsonl", state_.metrics_bytes, environment_.files);
  for (const Json& line : metrics_lines({"", folder_})) {
    if (line.value("event", "") == "unreadable") bad_.insert(line.value("path", ""));
  }
  loader_ = std::make_unique<io::ImageLoader>(images_.train, loader_options(options_));
  val_loader_ = std::make_unique<io::ImageLoader>(images_.val, loader_options(options_));
  progress_ = std::make_unique<Progress>("step", options_.epochs * steps_, state_.step);
  curves_ = std::make_unique<TrainCurves>(folder_, state_, steps_,
                                          [this](const std::string& text) { progress_->note(text); });
}

void Pretraining::restore() {
  const auto newest = restore_newest(ctx_, store_, {model_, optimiser_, average_.get()}, fingerprint_);
  if (!newest) return;
  state_ = *newest;
  fmt::print(stderr, "resumes at step {} (epoch {}, {} of {} steps)\n", state_.step,
             std::min(state_.epoch + 1, options_.epochs), state_.position, steps_);
}

void Pretraining::save() {
  curves_->flush();
  state_.rng = ctx_.rng().state();
  state_.metrics_bytes = metrics_->bytes();
  store_.save(state_.step, options_.keep, [&](const std::string& folder) {
    write_checkpoint(ctx_, folder, {model_, optimiser_, average_.get()}, state_, fingerprint_, environment_.files);
    io::write_preprocessing(folder, preprocessing(), environment_.files);
  });
}

bool Pretraining::validates(int64_t epoch) const {
  if (images_.val.empty()) return false;
  return epoch + 1 == options_.epochs || (options_.validate_every > 0 && (epoch + 1) % options_.validate_every == 0);
}

bool Pretraining::run() {
  const auto training = [&](int64_t epoch, int64_t first) {
    loader_->add({io::shuffled(all_of(images_.train), options_.run.seed, epoch), epoch, first, options_.augment,
                  /*drop_last=*/true});
  };
  if (state_.epoch < options_.epochs) training(state_.epoch, state_.position);
  while (state_.epoch < options_.epochs) {
    if (state_.epoch + 1 < options_.epochs) training(state_.epoch + 1, 0);  // reading never waits for a validation
    if (!train_epoch() || !finish_epoch()) return false;
  }
  finish();
  return true;
}

bool Pretraining::train_epoch() {
  while (state_.position < steps_) {
    if (rule_.stop()) {
      save();
      return false;
    }
    const double start = now_seconds();
    const std::optional<io::ImageBatch> batch = loader_->next();
    PM_CHECK(batch.has_value(), Error, "the image loader ended early");
    report_bad(*batch);
    learn(*batch);
    ++state_.position;
    ++state_.step;
    ++state_.update;
    rule_.count_step();
    curves_->add_update(state_);
    state_.seconds += now_seconds() - start;
    const double rate = static_cast<double>(state_.learnt * options_.batch) / std::max(state_.seconds, 1e-9);
    progress_->update(state_.step, fmt::format("epoch {}/{}  {:.0f} images/s  loss {:.4f}", state_.epoch + 1,
                                               options_.epochs, rate, mean_loss()));
    const bool due = options_.checkpoint_every > 0 && state_.step % options_.checkpoint_every == 0;
    if (due || state_.position == steps_) save();
  }
  return true;
}

void Pretraining::learn(const io::ImageBatch& batch) {
  state_.lr = cosine_schedule(state_.update, options_.epochs * steps_, warmup_epochs(options_) * steps_,
                              learning_rate(options_), 0.0);
  const BatchStep::Result result = step_->run(batch, state_.lr);
  if (!std::isfinite(result.loss) || !std::isfinite(result.grad_norm)) {
    const std::vector<int64_t> steps = store_.steps();
    throw Error(
        fmt::format("epoch {}, step {}: the loss is {} and the norm of its gradient {}. {}. Lower --lr or --clip or "
                    "lengthen --warmup, and start "
                    "from there with --init in another run folder",
                    state_.epoch + 1, state_.step + 1, result.loss, result.grad_norm,
                    steps.empty() ? std::string("There is no checkpoint yet")
                                  : "The last good checkpoint is " + store_.path(steps.back())));
  }
  if (average_ != nullptr) average_->update(ctx_);
  state_.loss_sum += result.loss;
  state_.update_loss = result.loss;
  state_.update_slides = 1;
  state_.grad_norm = result.grad_norm;
  ++state_.learnt;
}

void Pretraining::report_bad(const io::ImageBatch& batch) {
  for (const io::ImageBatch::Bad& image : batch.bad) {
    if (!bad_.insert(image.path).second) continue;
    ++state_.unreadable;
    progress_->note(fmt::format("warning: {} is left out: {}", image.path, image.reason));
    add_line({{"event", "unreadable"}, {"path", image.path}, {"reason", image.reason}}, /*print=*/false);
  }
}

std::optional<Json> Pretraining::validate() {
  const WithAverage averaged(ctx_, average_.get());
  BatchScore sum;
  val_loader_->add({all_of(images_.val), state_.epoch, 0, /*augment=*/false, /*drop_last=*/false});
  while (const std::optional<io::ImageBatch> batch = val_loader_->next()) {
    if (rule_.stop()) return std::nullopt;
    report_bad(*batch);
    sum += score_batch(ctx_, model_, *batch);
  }
  const auto images = static_cast<double>(sum.images);
  return Json{{"images", sum.images},
              {"loss", sum.loss / images},
              {"top1", static_cast<double>(sum.top1) / images},
              {"top5", static_cast<double>(sum.top5) / images}};
}

bool Pretraining::finish_epoch() {
  Json line = {{"epoch", state_.epoch + 1},
               {"step", state_.step},
               {"update", state_.update},
               {"loss", mean_loss()},
               {"lr", state_.lr},
               {"grad_norm", state_.grad_norm},
               {"unreadable", state_.unreadable},
               {"seconds", state_.seconds},
               {"peak_gb", static_cast<double>(ctx_.backend().memory().peak_bytes) / 1e9}};
  if (validates(state_.epoch)) {
    const std::optional<Json> validation = validate();
    if (!validation) return false;
    line["validation"] = validation_ = *validation;
    const auto loss = validation_["loss"].get<double>();
    mark_if_best(store_, state_, loss);
    progress_->note(fmt::format("epoch {}: training loss {:.4f}, validation loss {:.4f}, top-1 {:.4f}, top-5 {:.4f}",
                                state_.epoch + 1, mean_loss(), loss, validation_["top1"].get<double>(),
                                validation_["top5"].get<double>()));
  }
  add_line(line, options_.run.json);
  curves_->add_epoch(state_, line);
  last_loss_ = mean_loss();
  ++state_.epoch;
  state_.position = state_.learnt = 0;
  state_.loss_sum = state_.seconds = 0.0;
  return true;
}

void Pretraining::add_line(const Json& line, bool print) {
  metrics_->add(line.dump());
  if (print) fmt::print("{}\n", line.dump());
}

void Pretraining::finish() {
  const WithAverage averaged(ctx_, average_.get());
  const std::string model = folder_ + "/model";
  io::write_model(model, model_, environment_.files);
  io::write_preprocessing(model, preprocessing(), environment_.files);
  Json summary = {{"epochs", state_.epoch},
                  {"step", state_.step},
                  {"loss", last_loss_},
                  {"unreadable", state_.unreadable},
                  {"class_names", images_.classes}};
  if (!validation_.empty()) summary["validation"] = validation_;
  io::write_file_atomically(folder_ + "/summary.json", summary.dump(1) + "\n", environment_.files);
  if (!options_.run.json && !validation_.empty()) {
    fmt::print("top-1 {:.4f}, top-5 {:.4f}, loss {:.4f} on {} validation images\n", validation_["top1"].get<double>(),
               validation_["top5"].get<double>(), validation_["loss"].get<double>(),
               validation_["images"].get<int64_t>());
  }
}

void write_pretrain_report(const PretrainOptions& options, const Json& settings, const Json& about) {
  io::RunReport report;
  report.title = "Pretraining on " + fs::path(options.images).filename().string();
  report.metrics = {{"top-1 accuracy", {}, {}, {}, {}}};
  report.curves.push_back(curves_of({"training", options.out}, "top1"));
  const Json summary = Json::parse(io::read_file(options.out + "/summary.json"));
  if (summary.contains("validation")) {
    const Json& v = summary["validation"];
    report.verdict = fmt::format("Of {} validation images {:.1f} % are recognised (top-5: {:.1f} %) after {} epochs.",
                                 v["images"].get<int64_t>(), 100.0 * v["top1"].get<double>(),
                                 100.0 * v["top5"].get<double>(), summary["epochs"].get<int64_t>());
  }
  if (const auto bad = summary["unreadable"].get<int64_t>(); bad > 0)
    report.warnings.push_back(fmt::format("{} images could not be read; metrics.jsonl names them.", bad));
  add_run_entries(report, settings, about);
  io::write_report(options.out, report);
}

}  // namespace

int run_pretrain(const PretrainOptions& options, const RunEnvironment& environment) {
  const io::ImageFolder images = io::read_image_folder(options.images);
  const auto count = static_cast<int64_t>(images.train.size());
  fmt::print(stderr, "{}: {} classes, {} training and {} validation images{}\n", options.images, images.classes.size(),
             count, images.val.size(),
             images.others > 0 ? fmt::format("; {} files are neither JPEG nor PNG", images.others) : "");
  PM_CHECK(options.batch <= count, UsageError, "--batch {}: there are {} training images", options.batch, count);
  PM_CHECK(warmup_epochs(options) <= options.epochs, UsageError, "--warmup {}: the whole training has {} epochs",
           warmup_epochs(options), options.epochs);
  const auto ctx = make_context(options.run);
  require_batch_memory(*ctx, start_config(options.init, outputs_for(images), options.size),
                       activation_type(options.run, ctx->device()), options.batch, options.size);
  const Json settings = training_settings(options), about = about_run("pretrain", options.arguments, options.run, *ctx);
  const RunFolder folder(options.out, about, settings, options.resume, environment.files);
  const double start = now_seconds();
  StopRule rule(environment, options.stop_after);
  if (!Pretraining(*ctx, options, images, folder.path(), environment, rule).run())
    return interrupted(environment.stop_signal(), options.stop_after);
  write_pretrain_report(options, settings, about);
  fmt::print(
      stderr,
      "done in {}; wrote {}: model (config.json, model.safetensors), metrics.jsonl, summary.json, report.html and "
      "config.json\n",
      duration(now_seconds() - start), options.out);
  return kDone;
}

}  // namespace pm::app
