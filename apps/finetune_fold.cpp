#include "apps/finetune_fold.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "apps/guarded_gradients.h"
#include "apps/memory_check.h"
#include "apps/report_parts.h"
#include "apps/start_model.h"
#include "engine/core/check.h"
#include "engine/optim/schedule.h"
#include "io/checkpoint/model_folder.h"
#include "io/checkpoint/preprocessing.h"
#include "io/data/atomic_file.h"
#include "io/data/order.h"

namespace pm::app {
namespace fs = std::filesystem;
namespace {

using Json = nlohmann::ordered_json;

constexpr int64_t kMostSkippedInARow = 10;
constexpr int64_t kSuspiciousInARow = 2;  // no checkpoint replaces a good one from here on
// Random streams: initial weights and the order of slides count from 0, what training draws has a range per fold.
constexpr uint64_t kTrainingStream = uint64_t{1} << 62;
constexpr int kFoldShift = 40;

std::vector<int64_t> without(const std::vector<int64_t>& members, const std::set<int64_t>& unusable) {
  std::vector<int64_t> kept;
  std::copy_if(members.begin(), members.end(), std::back_inserter(kept),
               [&](int64_t slide) { return !unusable.contains(slide); });
  return kept;
}

io::LoaderOptions loader_options(const FinetuneOptions& options, const ModelConfig& config) {
  io::LoaderOptions load = options.load;
  load.region_size = config.region_size;
  load.raster = config.scan == ScanOrder::raster;
  load.seed = options.run.seed;
  return load;
}

}  // namespace

std::string checkpoint_folder(const std::string& fold_folder) { return fold_folder + "/checkpoints"; }
std::string summary_file(const std::string& fold_folder) { return fold_folder + "/summary.json"; }

FoldTrainer::FoldTrainer(Context& ctx, const FoldSettings& settings, const RunEnvironment& environment, StopRule& rule)
    : ctx_(ctx),
      settings_(settings),
      options_(settings.options),
      environment_(environment),
      rule_(rule),
      task_(make_task(options_, settings.cohort, settings.fold.train)),
      train_(without(settings.fold.train, settings.unusable)),
      val_(without(settings.fold.val, settings.unusable)),
      held_out_(without(settings.fold.held_out(), settings.unusable)),
      model_(start_model(ctx, options_.init, options_.run, {task_.head, task_.outputs})),
      optimiser_(make_adamw(ctx, model_, options_.weight_decay)),
      store_(checkpoint_folder(settings.folder), environment.files),
      updates_per_epoch_((static_cast<int64_t>(train_.size()) + options_.accumulate - 1) / options_.accumulate) {
  PM_CHECK(!train_.empty(), IoError, "{}: no training slide can be opened",
           settings_.label.empty() ? options_.table : settings_.label);
  const std::string cuts =
      task_.cuts.empty() ? "" : fmt::format("; time bins cut at {:.4g} months", fmt::join(task_.cuts, ", "));
  fmt::print(stderr, "{}{}: {}{}\n", settings_.label, settings_.label.empty() ? "training" : ", training",
             describe(task_, train_), cuts);
  if (!held_out_.empty()) fmt::print(stderr, "held out: {}\n", describe(task_, held_out_));
  if (options_.ema > 0.0) average_ = std::make_unique<WeightAverage>(ctx_, values_of(model_), options_.ema);
  ctx_.rng().set_state({options_.run.seed, kTrainingStream + (settings_.index << kFoldShift)});
  state_.rng = ctx_.rng().state();
  restore();
  PM_CHECK(options_.warmup <= options_.epochs * updates_per_epoch_, UsageError,
           "--warmup {}: the whole training has {} updates ({} epochs of {} slides, {} slides per update)",
           options_.warmup, options_.epochs * updates_per_epoch_, options_.epochs, train_.size(), options_.accumulate);
  metrics_ =
      std::make_unique<io::LineLog>(settings_.folder + "/metrics.jsonl", state_.metrics_bytes, environment_.files);
  for (const Json& line : metrics_lines({"", settings_.folder})) {
    const std::string event = line.value("event", "");
    if (event == "unreadable" || event == "bad tiles") reported_.insert(line.value("slide_id", ""));
  }
  loader_ = std::make_unique<io::SlideLoader>(settings_.cohort.slides(), loader_options(options_, model_.config()));
  progress_ =
      std::make_unique<Progress>("step", options_.epochs * static_cast<int64_t>(train_.size()), state_.step, " slides");
  curves_ = std::make_unique<TrainCurves>(settings_.folder, state_, static_cast<int64_t>(train_.size()),
                                          [this](const std::string& text) { progress_->note(text); });
}

std::string FoldTrainer::fingerprint() const {
  Fingerprint fingerprint;
  for (const auto* set : {&train_, &val_, &held_out_}) {
    for (const int64_t slide : *set) {
      const Target& target = task_.targets[static_cast<size_t>(slide)];
      fingerprint.add(fmt::format("{} {} {} {}", slide, row(slide).slide_id, target.label, target.censored));
    }
    fingerprint.add("end of set");
  }
  return fingerprint.text();
}

void FoldTrainer::restore() {
  const auto newest = restore_newest(ctx_, store_, {model_, optimiser_, average_.get()}, fingerprint());
  if (!newest) return;
  state_ = *newest;
  fmt::print(stderr, "resumes at step {} (epoch {}, {} of {} slides)\n", state_.step,
             std::min(state_.epoch + 1, options_.epochs), state_.position, train_.size());
}

void FoldTrainer::save() {
  curves_->flush();
  state_.rng = ctx_.rng().state();
  state_.metrics_bytes = metrics_->bytes();
  store_.save(state_.step, options_.keep, [&](const std::string& folder) {
    write_checkpoint(ctx_, folder, {model_, optimiser_, average_.get()}, state_, fingerprint(), environment_.files);
    io::write_preprocessing(folder, {options_.load.mpp, options_.load.keep_background, task_.class_names},
                            environment_.files);
  });
}

bool FoldTrainer::validates(int64_t epoch) const {
  return !val_.empty() && options_.validate_every > 0 && (epoch + 1) % options_.validate_every == 0;
}

std::vector<int64_t> FoldTrainer::training_order(int64_t epoch) const {
  if (options_.balance == 0.0) return io::shuffled(train_, options_.run.seed, epoch);
  std::vector<int64_t> classes;
  for (const int64_t slide : train_) classes.push_back(task_.targets[static_cast<size_t>(slide)].label);
  return io::balanced(train_, classes, options_.balance, options_.run.seed, epoch);
}

// The orders that this epoch takes from the loader, and the one after them, so that reading never waits for the network.
void FoldTrainer::expect_epoch() {
  const auto training = [&](int64_t epoch, int64_t first) {
    loader_->add({training_order(epoch), epoch, first, options_.augment});
  };
  const int64_t epoch = state_.epoch;
  if (expected_epoch_ != epoch) training(epoch, state_.position);
  if (validates(epoch)) loader_->add({val_, epoch});
  if (epoch + 1 < options_.epochs) {
    training(epoch + 1, 0);
    expected_epoch_ = epoch + 1;
  } else if (!validated_last()) {
    loader_->add({held_out_, epoch});
  }
}

// Whether the validation of the last epoch has the predictions that the fold ends with.
bool FoldTrainer::validated_last() const { return validates(options_.epochs - 1) && settings_.fold.test.empty(); }

io::SlideSample FoldTrainer::next_sample() {
  std::optional<io::SlideSample> sample = loader_->next();
  PM_CHECK(sample.has_value(), Error, "the slide loader ended early");
  const bool unreadable = !sample->error.empty();
  const io::SlideRow& slide = row(sample->slide);
  if ((unreadable || sample->bad_tiles > 0) && reported_.insert(slide.slide_id).second) {
    const std::string reason = unreadable ? sample->error
                                          : fmt::format("{} of {} tiles cannot be decoded and count as white",
                                                        sample->bad_tiles, sample->tiles);
    progress_->note(fmt::format("warning: slide {}{}: {}", slide.slide_id, unreadable ? " is left out" : "", reason));
    add_line({{"event", unreadable ? "unreadable" : "bad tiles"},
              {"slide_id", slide.slide_id},
              {"path", slide.path},
              {"reason", reason}},
             /*print=*/false);
  }
  return std::move(*sample);
}

bool FoldTrainer::run() {
  std::vector<SlidePrediction> predictions;
  while (state_.epoch < options_.epochs) {
    if (!train_epoch() || !finish_epoch(predictions)) return false;
  }
  if (!validated_last() && !predict_slides(held_out_, predictions)) return false;
  finish(predictions);
  return true;
}

bool FoldTrainer::train_epoch() {
  expect_epoch();
  const auto slides = static_cast<int64_t>(train_.size());
  while (state_.position < slides) {
    if (rule_.stop()) {
      save();
      return false;
    }
    const double start = now_seconds();
    const io::SlideSample sample = next_sample();
    if (sample.error.empty()) {
      state_.windows += sample.windows;
      state_.left_out += sample.left_out;
      learn(sample);
    } else {
      ++state_.unreadable;
    }
    ++state_.position;
    ++state_.step;
    rule_.count_step();
    if (state_.position % options_.accumulate == 0 || state_.position == slides) update_weights();
    state_.seconds += now_seconds() - start;
    progress_->update(state_.step, fmt::format("{}{}epoch {}/{}  slide {}  loss {:.4f}", settings_.label,
                                               settings_.label.empty() ? "" : "  ", state_.epoch + 1, options_.epochs,
                                               row(sample.slide).slide_id, mean_loss()));
    const bool due = options_.checkpoint_every > 0 && state_.step % options_.checkpoint_every == 0;
    if ((due || state_.position == slides) && state_.skipped_in_a_row < kSuspiciousInARow) save();
  }
  PM_CHECK(state_.learnt > 0 || state_.skipped_in_a_row > 0, IoError,
           "{}{}none of the {} training slides could be read: the messages above say why", settings_.label,
           settings_.label.empty() ? "" : ": ", slides);
  return true;
}

double FoldTrainer::mean_loss() const {
  return state_.learnt > 0 ? state_.loss_sum / static_cast<double>(state_.learnt) : std::nan("");
}

void FoldTrainer::learn(const io::SlideSample& sample) {
  try {
    learn_slide(sample);
  } catch (const OutOfMemoryError& error) {
    throw OutOfMemoryError(fmt::format("slide {}, {} x {} pixels: {}", row(sample.slide).slide_id, sample.image.width,
                                       sample.image.height, error.what()));
  }
}

// Adds the gradients of one slide's loss, or skips the slide when something is not finite.
void FoldTrainer::learn_slide(const io::SlideSample& sample) {
  const Target& target = task_.targets[static_cast<size_t>(sample.slide)];
  require_memory(ctx_, model_.config(), model_.activation(),
                 {{row(sample.slide).slide_id, sample.image.width, sample.image.height}}, options_.load.mpp);
  const Tensor image = image_tensor(ctx_, sample.image);
  const std::vector<Tensor> accumulated = take_gradients(model_);
  const RngState rng = ctx_.rng().state();
  ForwardOptions forward;
  forward.drop_path = options_.drop_path;
  const ForwardResult result = model_.forward(ctx_, Variable(image), forward);
  const Variable loss = loss_of(ctx_, task_, result.logits, target, options_.label_smoothing);
  const double value = host_value(loss.value());
  if (!std::isfinite(value)) {
    put_gradients(model_, accumulated);
    return skip(sample, fmt::format("the loss is {}, first not finite in {}", value,
                                    locate_not_finite(ctx_, model_, image, options_.drop_path, rng)));
  }
  const bool right =
      task_.head == Head::classification && best_class(prediction_of(model_.config(), result)) == target.label;
  backward(ctx_, loss);
  const std::string broken = accumulate_if_finite(ctx_, model_, accumulated);
  if (!broken.empty()) return skip(sample, fmt::format("the gradient is not finite in {}", broken));
  if (state_.accumulated == 0) {  // a new update begins
    state_.update_loss = 0.0;
    state_.update_slides = 0;
  }
  state_.loss_sum += value;
  state_.update_loss += value;
  ++state_.update_slides;
  state_.correct += right ? 1 : 0;
  state_.skipped_in_a_row = 0;
  ++state_.learnt;
  ++state_.accumulated;
}

void FoldTrainer::skip(const io::SlideSample& sample, const std::string& reason) {
  ++state_.skipped;
  ++state_.skipped_in_a_row;
  const std::string& id = row(sample.slide).slide_id;
  progress_->note(
      fmt::format("skipped slide {} (epoch {}, step {}): {}", id, state_.epoch + 1, state_.step + 1, reason));
  add_line({{"event", "skipped"},
            {"epoch", state_.epoch + 1},
            {"step", state_.step + 1},
            {"slide_id", id},
            {"reason", reason}},
           /*print=*/false);
  if (state_.skipped_in_a_row < kMostSkippedInARow) return;
  const std::vector<int64_t> steps = store_.steps();
  throw Error(
      fmt::format("{} slides in a row gave no finite gradient, the last is {}: {}. {}. Lower --lr, lengthen --warmup "
                  "or lower --clip, and "
                  "start from there with --init in another run folder",
                  kMostSkippedInARow, id, reason,
                  steps.empty() ? std::string("There is no checkpoint yet")
                                : "The last good checkpoint is " + store_.path(steps.back())));
}

void FoldTrainer::update_weights() {
  state_.lr = cosine_schedule(state_.update, options_.epochs * updates_per_epoch_, options_.warmup, options_.lr, 0.0);
  if (state_.accumulated > 0) {
    const double scale = 1.0 / static_cast<double>(state_.accumulated);
    state_.grad_norm = host_value(apply_gradients(ctx_, model_, optimiser_, {state_.lr, scale, options_.clip}));
    if (average_ != nullptr) average_->update(ctx_);
  }
  if (state_.accumulated == 0) state_.update_slides = 0;  // all were skipped
  state_.accumulated = 0;
  ++state_.update;
  curves_->add_update(state_);
}

bool FoldTrainer::finish_epoch(std::vector<SlidePrediction>& predictions) {
  Json line = {{"epoch", state_.epoch + 1},
               {"step", state_.step},
               {"update", state_.update},
               {"loss", mean_loss()},
               {"lr", state_.lr},
               {"grad_norm", state_.grad_norm},
               {"slides", state_.learnt},
               {"skipped", state_.skipped},
               {"unreadable", state_.unreadable},
               {"seconds", state_.seconds},
               {"peak_gb", static_cast<double>(ctx_.backend().memory().peak_bytes) / 1e9}};
  if (state_.windows > 0) {
    line["windows"] = state_.windows;
    line["windows_left_out"] = state_.left_out;
  }
  if (state_.epoch == 0 && state_.left_out > 0) {
    progress_->note(fmt::format("{} of {} windows have no tissue and were left out (--keep-background keeps them)",
                                state_.left_out, state_.windows));
  }
  if (!settings_.label.empty()) line["fold"] = settings_.fold.name;
  if (task_.head == Head::classification && state_.learnt > 0) {
    line["accuracy"] = static_cast<double>(state_.correct) / static_cast<double>(state_.learnt);
  }
  if (validates(state_.epoch)) {
    if (!predict_slides(val_, predictions)) return false;
    const Json held_out = figures(task_, predictions, average_by_case(settings_.cohort, predictions));
    line["validation"] = held_out;
    const Json loss = held_out.value("loss", Json());
    if (loss.is_number()) mark_if_best(store_, state_, loss.get<double>());
  }
  add_line(line, options_.run.json);
  curves_->add_epoch(state_, line);
  last_loss_ = mean_loss();
  ++state_.epoch;
  state_.position = state_.learnt = state_.correct = state_.windows = state_.left_out = 0;
  state_.loss_sum = state_.seconds = 0.0;
  return true;
}

void FoldTrainer::add_line(const Json& line, bool print) {
  metrics_->add(line.dump());
  if (print) fmt::print("{}\n", line.dump());
}

bool FoldTrainer::predict_slides(const std::vector<int64_t>& members, std::vector<SlidePrediction>& predictions) {
  predictions.clear();
  const WithAverage averaged(ctx_, average_.get());
  const NoGrad no_grad(ctx_);
  for (size_t i = 0; i < members.size(); ++i) {
    if (rule_.stop()) return false;
    const io::SlideSample sample = next_sample();
    if (!sample.error.empty()) continue;
    const ForwardResult result = model_.forward(ctx_, Variable(image_tensor(ctx_, sample.image)));
    const Target& target = task_.targets[static_cast<size_t>(sample.slide)];
    const Prediction prediction = prediction_of(model_.config(), result);
    predictions.push_back({sample.slide, host_value(loss_of(ctx_, task_, result.logits, target, 0.0).value()),
                           prediction.probabilities, prediction.risk});
  }
  return true;
}

void FoldTrainer::finish(const std::vector<SlidePrediction>& predictions) {
  {
    const WithAverage averaged(ctx_, average_.get());
    const std::string folder = settings_.folder + "/model";
    io::write_model(folder, model_, environment_.files);
    io::write_preprocessing(folder, {options_.load.mpp, options_.load.keep_background, task_.class_names},
                            environment_.files);
  }
  Json summary = {{"epochs", state_.epoch},   {"step", state_.step},         {"update", state_.update},
                  {"loss", last_loss_},       {"skipped", state_.skipped},   {"unreadable", state_.unreadable},
                  {"outputs", task_.outputs}, {"survival_cuts", task_.cuts}, {"class_names", task_.class_names}};
  if (!held_out_.empty()) {
    const std::vector<CasePrediction> cases = average_by_case(settings_.cohort, predictions);
    const std::string& name = settings_.fold.name;
    io::write_file_atomically(settings_.folder + "/predictions.csv", case_table(task_, name, cases),
                              environment_.files);
    io::write_file_atomically(settings_.folder + "/slide_predictions.csv",
                              slide_table(task_, settings_.cohort, name, predictions), environment_.files);
    summary["held_out"] = figures(task_, predictions, cases);
  }
  io::write_file_atomically(summary_file(settings_.folder), summary.dump(1) + "\n", environment_.files);
}

}  // namespace pm::app
