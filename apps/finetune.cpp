// finetune: trains end to end on a table of slides, for staging (classes) or survival, and saves a model folder.
#include <algorithm>
#include <cmath>
#include <csignal>
#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <numeric>

#include "apps/common.h"
#include "apps/predict.h"
#include "apps/train_step.h"
#include "autograd/ops/cross_entropy.h"
#include "autograd/ops/survival_nll.h"
#include "engine/core/check.h"
#include "engine/ops/backends.h"
#include "engine/ops/loss/cross_entropy.h"
#include "engine/optim/adamw.h"
#include "engine/optim/schedule.h"
#include "io/checkpoint/model_folder.h"
#include "io/checkpoint/safetensors.h"
#include "io/config/model_config.h"
#include "io/data/atomic_file.h"

namespace pm::app {
namespace {

constexpr int64_t kSurvivalBins = 4;
constexpr int64_t kPixelCacheBytes = int64_t{4} << 30;  // decoded slides kept in host memory between epochs

struct FinetuneOptions {
  RunOptions run;
  ReadOptions read;
  std::string table, out, init = "6m", task = "auto";
  int64_t epochs = 100, accumulate = 8, warmup = 0, classes = 0;
  double lr = 4e-4, weight_decay = 0.05, clip = 1.0, label_smoothing = 0.0;
};

volatile std::sig_atomic_t stop_signal = 0;

void remember_signal(int signal) { stop_signal = signal; }

// What a slide teaches.
struct Target {
  int64_t label = 0;  // class, or time bin
  bool censored = false;
};

struct Task {
  Head head = Head::classification;
  int64_t outputs = 0;       // classes or time bins
  std::vector<double> cuts;  // of the time bins, months
  std::vector<Target> targets;
};

Task make_task(const FinetuneOptions& options, const io::SlideTable& table) {
  Task task;
  const bool survival = options.task == "survival" || (options.task == "auto" && !table.has_labels && table.has_survival);
  PM_CHECK(survival ? table.has_survival : table.has_labels, IoError,
           "{}: the table needs a column label (classes) or the columns survival_months and censorship (survival)", options.table);
  if (survival) {
    task.head = Head::survival;
    task.outputs = kSurvivalBins;
    task.cuts = io::survival_cuts(table.rows, kSurvivalBins);
    int64_t events = 0;
    for (const io::SlideRow& row : table.rows) {
      task.targets.push_back({io::survival_bin(*row.survival_months, task.cuts), row.censored});
      events += row.censored ? 0 : 1;
    }
    fmt::print(stderr, "task: survival, {} slides, {} events, time bins cut at {:.4g} months\n", table.rows.size(), events,
               fmt::join(task.cuts, ", "));
    return task;
  }
  for (const io::SlideRow& row : table.rows) {
    task.targets.push_back({*row.label, false});
    task.outputs = std::max(task.outputs, *row.label + 1);
  }
  PM_CHECK(options.classes == 0 || task.outputs <= options.classes, IoError, "{}: label {} needs --classes {} or more",
           options.table, task.outputs - 1, task.outputs);
  task.outputs = std::max(task.outputs, options.classes);
  std::vector<int64_t> counts(static_cast<size_t>(task.outputs));
  for (const Target& target : task.targets) ++counts[static_cast<size_t>(target.label)];
  fmt::print(stderr, "task: {} classes, {} slides, per class {}\n", task.outputs, table.rows.size(), fmt::join(counts, ", "));
  return task;
}

// The network to start from: the init folder's layers and every weight that fits, with the task's head.
PixelMamba make_model(Context& ctx, const FinetuneOptions& options, const Task& task) {
  const DType activation = activation_type(options.run, ctx.device());
  const bool random = is_published_name(options.init);
  ModelConfig config = random ? published_config(options.init, task.outputs) : io::read_model_config(options.init + "/config.json");
  const bool same_head = config.head == task.head && config.num_classes == task.outputs;
  config.head = task.head;
  config.num_classes = task.outputs;
  PixelMamba model(ctx, config, activation, options.run.seed);
  if (random) {
    fmt::print(stderr, "start: {} with random weights from seed {}\n", options.init, options.run.seed);
    return model;
  }
  Context host(make_backend(Device::cpu()));
  auto weights = io::read_safetensors(host, options.init + "/model.safetensors");
  if (!same_head) {  // a head for other outputs means nothing here, even where its shape agrees
    weights.erase("head.weight");
    weights.erase("head.bias");
  }
  const std::vector<std::string> taken = model.load_matching(ctx, weights);
  fmt::print(stderr, "start: {}: {} of {} tensors taken, {}\n", options.init, taken.size(), model.parameters().size(),
             same_head ? "its head kept" : "a new head");
  return model;
}

// Slides as pixels, decoded once and kept while they fit.
class SlidePixels {
 public:
  SlidePixels(const std::vector<io::SlideRow>& rows, const ReadOptions& options)
      : rows_(rows), options_(options), cache_(rows.size()) {}

  Tensor read(Context& ctx, size_t index) {
    if (cache_[index].rgb.empty()) {
      io::SlideImage slide = read_slide_row(rows_[index], options_);
      if (slide.bad_tiles > 0) {
        fmt::print(stderr, "\nwarning: {}: {} of {} tiles cannot be decoded and count as white\n", rows_[index].path,
                   slide.bad_tiles, slide.tiles);
      }
      const auto bytes = static_cast<int64_t>(slide.image.rgb.size());
      if (cached_bytes_ + bytes > kPixelCacheBytes) return image_tensor(ctx, slide.image);
      cached_bytes_ += bytes;
      cache_[index] = std::move(slide.image);
    }
    return image_tensor(ctx, cache_[index]);
  }

 private:
  const std::vector<io::SlideRow>& rows_;
  const ReadOptions& options_;
  std::vector<io::Image> cache_;
  int64_t cached_bytes_ = 0;
};

double host_value(const Tensor& tensor) {
  return tensor.dtype() == DType::f64 ? tensor.to_host<double>()[0] : tensor.to_host<float>()[0];
}

Variable loss_of(Context& ctx, const Task& task, const Variable& logits, const Target& target, double label_smoothing) {
  if (task.head == Head::survival) {
    const int64_t censored = target.censored ? 1 : 0;
    return survival_nll(ctx, logits, Tensor::from_host(ctx, {1}, &target.label), Tensor::from_host(ctx, {1}, &censored));
  }
  return cross_entropy(ctx, logits, ops::one_hot(ctx, {target.label}, task.outputs, logits.value().dtype()), label_smoothing);
}

// A permutation of the slides that depends on seed and epoch alone (Fisher-Yates).
std::vector<size_t> shuffled(size_t count, uint64_t seed, int64_t epoch) {
  const RngState draw{seed, static_cast<uint64_t>(epoch)};
  std::vector<size_t> order(count);
  std::iota(order.begin(), order.end(), size_t{0});
  for (size_t i = count; i > 1; --i) {
    const auto other = static_cast<size_t>(uniform_at(draw, static_cast<int64_t>(i)) * static_cast<double>(i));
    std::swap(order[i - 1], order[std::min(other, i - 1)]);
  }
  return order;
}

// The run folder: what was asked for, a line of metrics per epoch, the model.
class RunFolder {
 public:
  RunFolder(const FinetuneOptions& options, const Task& task, Device device) : path_(options.out) {
    io::make_folder(path_);
    nlohmann::ordered_json json = {{"program", "pixel-mamba"}, {"version", PM_VERSION}, {"command", "finetune"},
                                   {"table", options.table}, {"init", options.init},
                                   {"task", task.head == Head::survival ? "survival" : "classification"},
                                   {"outputs", task.outputs}, {"survival_cuts", task.cuts}, {"epochs", options.epochs},
                                   {"accumulate", options.accumulate}, {"lr", options.lr}, {"warmup", options.warmup},
                                   {"weight_decay", options.weight_decay}, {"clip", options.clip},
                                   {"label_smoothing", options.label_smoothing}, {"mpp", options.read.mpp},
                                   {"device", device.str()}, {"precision", options.run.precision}, {"seed", options.run.seed}};
    if (options.read.slide_mpp) json["slide_mpp"] = *options.read.slide_mpp;
    io::write_file_atomically(path_ + "/config.json", json.dump(1) + "\n");
  }
  void add_metrics(const nlohmann::ordered_json& line) {
    metrics_ += line.dump() + "\n";
    io::write_file_atomically(path_ + "/metrics.jsonl", metrics_);
  }
  std::string model() const { return path_ + "/model"; }

 private:
  std::string path_, metrics_;
};

class Trainer {
 public:
  Trainer(Context& ctx, PixelMamba& model, const FinetuneOptions& options, const io::SlideTable& table, const Task& task)
      : ctx_(ctx), model_(model), options_(options), table_(table), task_(task), pixels_(table.rows, options.read),
        optimiser_(make_adamw(ctx, model, options.weight_decay)),
        steps_per_epoch_((static_cast<int64_t>(table.rows.size()) + options.accumulate - 1) / options.accumulate),
        progress_("step", options.epochs * steps_per_epoch_) {}

  // Returns false when a signal stopped it; the current step is finished then.
  bool train_epoch(int64_t epoch, RunFolder& folder) {
    const std::vector<size_t> order = shuffled(table_.rows.size(), options_.run.seed, epoch);
    const double start = now_seconds();
    double epoch_loss = 0.0, norm = 0.0, lr = 0.0;
    int64_t correct = 0, seen = 0;
    for (size_t first = 0; first < order.size() && stop_signal == 0; first += static_cast<size_t>(options_.accumulate)) {
      const size_t last = std::min(order.size(), first + static_cast<size_t>(options_.accumulate));
      double step_loss = 0.0;
      for (size_t i = first; i < last; ++i) step_loss += learn(order[i], correct);
      lr = cosine_schedule(step_, options_.epochs * steps_per_epoch_, options_.warmup, options_.lr, 0.0);
      const auto slides = static_cast<int64_t>(last - first);
      norm = host_value(apply_gradients(ctx_, model_, optimiser_, {lr, 1.0 / static_cast<double>(slides), options_.clip}));
      PM_CHECK(std::isfinite(norm), Error, "epoch {}: the gradient is not finite: lower --lr, or clip with --clip", epoch + 1);
      ++step_;
      seen += slides;
      epoch_loss += step_loss;
      progress_.update(step_, fmt::format("epoch {}  loss {:.4f}", epoch + 1, step_loss / static_cast<double>(slides)));
    }
    if (seen > 0) {
      last_loss_ = epoch_loss / static_cast<double>(seen);
      nlohmann::ordered_json line = {{"epoch", epoch + 1}, {"step", step_}, {"loss", last_loss_}, {"lr", lr}, {"grad_norm", norm},
                                     {"slides", seen}, {"seconds", now_seconds() - start},
                                     {"peak_gb", static_cast<double>(ctx_.backend().memory().peak_bytes) / 1e9}};
      if (task_.head == Head::classification) line["accuracy"] = static_cast<double>(correct) / static_cast<double>(seen);
      folder.add_metrics(line);
      if (options_.run.json) fmt::print("{}\n", line.dump());
    }
    return stop_signal == 0;
  }
  double last_loss() const { return last_loss_; }

 private:
  // Adds the gradients of one slide's loss; returns the loss.
  double learn(size_t index, int64_t& correct) {
    const Target& target = task_.targets[index];
    const ForwardResult result = model_.forward(ctx_, Variable(pixels_.read(ctx_, index)));
    const Variable loss = loss_of(ctx_, task_, result.logits, target, options_.label_smoothing);
    const double value = host_value(loss.value());
    PM_CHECK(std::isfinite(value), Error, "{}: the loss is {}: lower --lr, or clip with --clip", table_.rows[index].slide_id, value);
    if (task_.head == Head::classification) correct += best_class(prediction_of(model_.config(), result)) == target.label;
    backward(ctx_, loss);
    return value;
  }

  Context& ctx_;
  PixelMamba& model_;
  const FinetuneOptions& options_;
  const io::SlideTable& table_;
  const Task& task_;
  SlidePixels pixels_;
  AdamW optimiser_;
  int64_t steps_per_epoch_, step_ = 0;
  double last_loss_ = 0.0;
  Progress progress_;
};

int run_finetune(const FinetuneOptions& options) {
  const io::SlideTable table = io::read_slide_table(options.table);
  for (const io::SlideRow& row : table.rows) {
    PM_CHECK(std::filesystem::exists(row.path), IoError, "{}: slide {}: there is no file {}", options.table, row.slide_id, row.path);
  }
  const Task task = make_task(options, table);
  const auto ctx = make_context(options.run);
  PixelMamba model = make_model(*ctx, options, task);
  RunFolder folder(options, task, ctx->device());
  std::signal(SIGINT, remember_signal);
  std::signal(SIGTERM, remember_signal);
  const double start = now_seconds();
  {
    Trainer trainer(*ctx, model, options, table, task);
    for (int64_t epoch = 0; epoch < options.epochs; ++epoch) {
      if (!trainer.train_epoch(epoch, folder)) break;
    }
    io::write_model(folder.model(), model);
    fmt::print(stderr, "\nmean training loss of the last epoch {:.4f}, {}\n", trainer.last_loss(), duration(now_seconds() - start));
  }
  fmt::print(stderr, "wrote {0}/model (config.json, model.safetensors), {0}/metrics.jsonl and {0}/config.json\n", options.out);
  if (stop_signal != 0) {
    fmt::print(stderr, "stopped by a signal; the model of the last finished step is saved\n");
    return 128 + stop_signal;
  }
  return kDone;
}

}  // namespace

void add_finetune(CLI::App& app, Command& command) {
  auto options = std::make_shared<FinetuneOptions>();
  CLI::App* verb = app.add_subcommand("finetune", "Train end to end on a CSV table of slides, for classes or survival");
  verb->add_option("TABLE", options->table,
                   "CSV with columns path and label (0, 1, ..) or survival_months and censorship (1 = censored); slide_id, "
                   "case_id and mpp where known")
      ->required();
  verb->add_option("--out", options->out, "run folder to write")->required()->type_name("DIR");
  verb->add_option("--init", options->init, "model folder to start from, or 6m / 21m for random weights")
      ->capture_default_str()
      ->type_name("MODEL");
  verb->add_option("--task", options->task, "classification or survival; auto: by the table's columns")
      ->capture_default_str()
      ->check(CLI::IsMember({"auto", "classification", "survival"}));
  verb->add_option("--classes", options->classes, "number of classes; 0: the largest label + 1")->capture_default_str();
  verb->add_option("--epochs", options->epochs, "passes over the table")->capture_default_str()->check(CLI::PositiveNumber);
  verb->add_option("--accumulate", options->accumulate, "slides per optimiser step")->capture_default_str()->check(CLI::PositiveNumber);
  verb->add_option("--lr", options->lr, "highest learning rate; falls to 0 along a cosine")
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
  verb->add_option("--warmup", options->warmup, "steps over which the rate rises from 0 first")
      ->capture_default_str()
      ->check(CLI::NonNegativeNumber);
  verb->add_option("--weight-decay", options->weight_decay, "of matrices")->capture_default_str()->check(CLI::NonNegativeNumber);
  verb->add_option("--clip", options->clip, "largest gradient norm; 0: no clipping")->capture_default_str()->check(CLI::NonNegativeNumber);
  verb->add_option("--label-smoothing", options->label_smoothing, "classes: share of the target spread evenly")
      ->capture_default_str()
      ->check(CLI::Range(0.0, 0.999));
  verb->add_option("--mpp", options->read.mpp, "micrometres per pixel the network sees (4 is about 2.5x)")
      ->capture_default_str()
      ->check(CLI::PositiveNumber)
      ->type_name("UM");
  verb->add_option("--slide-mpp", options->read.slide_mpp, "micrometres per pixel of slides that do not say theirs")
      ->check(CLI::PositiveNumber)
      ->type_name("UM");
  add_run_options(*verb, options->run);
  verb->callback([options, &command] { command.exit_code = run_finetune(*options); });
}

}  // namespace pm::app
