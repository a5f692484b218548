// Pretraining on a folder of images: it learns, stops, goes on to the same end, and says what is wrong.
#include <signal.h>

#include <cmath>
#include <filesystem>
#include <fstream>

#include "apps/batch_step.h"
#include "apps/pretrain.h"
#include "io/slide/image.h"
#include "tests/apps/run_checks.h"
#include "tests/apps/run_program.h"
#include "tests/apps/small_runs.h"
#include "tests/io/failing_files.h"
#include "tests/support/test.h"

namespace pm::test {
namespace {

namespace fs = std::filesystem;

// Stripes of 16 x 16 pixels, two classes: across and down. 12 training and 5 validation images each.
class Images {
 public:
  Images() {
    write_small_model(model(), Head::classification, 2);
    for (const auto& [set, count] : {std::pair{"train", 12}, {"val", 5}}) {
      for (int i = 0; i < 2 * count; ++i) write(set, i);
    }
  }
  std::string root() const { return dir_.path() + "/images"; }
  std::string model() const { return dir_.path() + "/init"; }
  std::string run(const std::string& name) const { return dir_.path() + "/" + name; }
  std::string image(const std::string& set, int index) const {
    return root() + "/" + set + (index % 2 == 0 ? "/across/" : "/down/") + std::to_string(index) + ".png";
  }

 private:
  void write(const std::string& set, int index) {
    io::Image image{16, 16, {}};
    for (int64_t y = 0; y < 16; ++y) {
      for (int64_t x = 0; x < 16; ++x) {
        const bool dark = ((index % 2 == 0 ? y : x) + index / 2) / 4 % 2 == 0;
        for (int c = 0; c < 3; ++c) image.rgb.push_back(dark ? 40 + index : 200);
      }
    }
    fs::create_directories(fs::path(this->image(set, index)).parent_path());
    io::write_png(this->image(set, index), image);
  }
  TempDir dir_;
};

// 24 images in 4 batches of 6, 3 epochs, everything random or stateful switched on.
app::PretrainOptions options_for(const Images& images, const std::string& run) {
  app::PretrainOptions options;
  options.images = images.root();
  options.init = images.model();
  options.out = images.run(run);
  options.run.device = "cpu";
  options.run.seed = 5;
  options.size = 16;
  options.batch = 6;
  options.epochs = 3;
  options.lr = 3e-3;
  options.warmup = 1;
  options.drop_path = 0.3;
  options.ema = 0.9;
  options.keep = 1;
  options.workers = 2;
  return options;
}

int pretrain(const app::PretrainOptions& options, io::FileOps& files, int signal = 0) {
  const Quiet quiet;
  return app::run_pretrain(options, {files, [signal] { return signal; }});
}
int pretrain(const app::PretrainOptions& options, int signal = 0) {
  FailingFiles files;
  return pretrain(options, files, signal);
}

void check_resumes_everywhere(const Images& images, const app::PretrainOptions& whole) {
  REQUIRE(pretrain(whole) == 0);
  // Within an epoch, at its end, at the end of the training.
  for (const int64_t stop : {1, 3, 4, 6, 11, 12}) {
    CAPTURE(stop);
    app::PretrainOptions options = whole;
    options.out = images.run("stopped" + std::to_string(stop));
    options.stop_after = stop;
    CHECK(pretrain(options) == 0);
    options.stop_after = 0;
    options.resume = true;
    CHECK(pretrain(options) == 0);
    check_same_run(options.out, whole.out);
  }
}

}  // namespace

TEST_CASE("pretraining learns classes of images, and the other verbs take what it leaves", "[cpu]") {
  const Images images;
  const std::string run = images.run("run");
  const Outcome outcome = run_program(
      "pretrain " + images.root() + " --init " + images.model() +
      " --image-size 16 --batch 6 --epochs 16 --lr 1e-2 --crop-area 0.8 --erase 0 --mixup 0 --device cpu --out " + run);
  CAPTURE(outcome.err);
  REQUIRE(outcome.code == 0);
  CHECK(contains(outcome.err, "2 classes, 24 training and 10 validation images"));
  CHECK(contains(outcome.out, "top-1 "));
  const Json summary = Json::parse(read_text(run + "/summary.json"));
  CHECK(summary["class_names"] == Json({"across", "down"}));
  CHECK(summary["validation"]["images"] == 10);
  CHECK(summary["validation"]["top1"].get<double>() >= 0.9);
  CHECK(summary["validation"]["top5"] == 1.0);
  const std::vector<Json> lines = json_lines(read_text(run + "/metrics.jsonl"));
  REQUIRE(lines.size() == 16);
  CHECK(lines.back()["loss"].get<double>() < lines.front()["loss"].get<double>());
  for (const char* file : {"/report.html", "/training_curves.svg", "/config.json", "/checkpoints/last/state.json",
                           "/checkpoints/best/model.safetensors"}) {
    CAPTURE(file);
    CHECK(fs::exists(run + file));
  }
  CHECK(contains(read_text(run + "/report.html"), "Of 10 validation images"));

  const Outcome inferred =
      run_program("infer " + images.image("val", 1) + " --model " + run + "/model --json --device cpu");
  CAPTURE(inferred.err);
  REQUIRE(inferred.code == 0);
  const Json line = json_lines(inferred.out)[0];
  CHECK(line["probabilities"][1].get<double>() > 0.5);

  std::ofstream(images.run("table.csv")) << "path,label\n"
                                         << images.image("val", 0) << ",0\n"
                                         << images.image("val", 1) << ",1\n";
  const Outcome tuned = run_program("finetune " + images.run("table.csv") +
                                    " --slide-mpp 1 --mpp 1 --keep-background --epochs 1 --init " + run +
                                    "/model --device cpu --out " + images.run("tuned"));
  CAPTURE(tuned.err);
  CHECK(tuned.code == 0);
  CHECK(contains(tuned.err, "its head kept"));
}

TEST_CASE("a pretraining that is stopped and resumed ends like one that was not", "[cpu]") {
  const Images images;
  std::ofstream(images.image("train", 2), std::ios::trunc)
      << "no picture";  // is named once, however often a run begins
  fs::resize_file(images.image("val", 3), 40);
  check_resumes_everywhere(images, options_for(images, "whole"));
  // Two steps at a time, with checkpoints between, and once more when all is done.
  app::PretrainOptions options = options_for(images, "often");
  options.resume = true;
  options.stop_after = 2;
  for (int i = 0; i < 8; ++i) CHECK(pretrain(options) == 0);
  check_same_run(options.out, images.run("whole"));
}

TEST_CASE("a pretraining on a GPU repeats and resumes bit for bit, as a captured graph too", "[cuda][cublas]") {
  const Images images;
  app::PretrainOptions whole = options_for(images, "whole");
  whole.run.device = "cuda";
  whole.run.precision = GENERATE("fp32", "bf16");
  whole.drop_path = 0.0;  // with it nothing is captured
  check_resumes_everywhere(images, whole);
  app::PretrainOptions launched = whole;
  launched.out = images.run("launched");
  launched.graph = false;
  REQUIRE(pretrain(launched) == 0);
  check_same_run(launched.out, whole.out);

  app::PretrainOptions host = whole;
  host.out = images.run("host");
  host.run.device = "cpu";
  host.run.precision = "fp32";
  REQUIRE(pretrain(host) == 0);
  const auto first_loss = [](const std::string& run) {
    return json_lines(read_text(run + "/metrics.jsonl"))[0]["loss"].get<double>();
  };
  CHECK(std::abs(first_loss(whole.out) - first_loss(host.out)) <= (whole.run.precision == "fp32" ? 1e-4 : 2e-2));
}

TEST_CASE("a signal ends a pretraining with a checkpoint that goes on", "[cpu]") {
  const Images images;
  REQUIRE(pretrain(options_for(images, "whole")) == 0);
  app::PretrainOptions options = options_for(images, "stopped");
  CHECK(pretrain(options, SIGTERM) == 143);
  options.resume = true;
  CHECK(pretrain(options, SIGINT) == 130);
  CHECK(pretrain(options) == 0);
  check_same_run(options.out, images.run("whole"));
}

TEST_CASE("a failing disk ends a pretraining, and it goes on to the same end", "[cpu]") {
  const Images images;
  check_faults(images.run(""), FailingFiles::How::error, 7, [&](const std::string& folder, io::FileOps& files) {
    app::PretrainOptions options = options_for(images, fs::path(folder).filename().string());
    options.epochs = 1;
    options.ema = 0.0;
    options.checkpoint_every = 2;
    options.resume = true;
    return pretrain(options, files);
  });
}

TEST_CASE("images that cannot be read cost only themselves and are named once", "[cpu]") {
  const Images images;
  const std::string train = images.image("train", 2), val = images.image("val", 3);
  std::ofstream(train, std::ios::trunc) << "no picture";
  fs::resize_file(val, 40);
  const app::PretrainOptions options = options_for(images, "run");
  CHECK(pretrain(options) == 0);
  std::vector<std::string> named;
  for (const Json& line : json_lines(read_text(options.out + "/metrics.jsonl"))) {
    if (line.contains("event")) named.push_back(line["path"]);
  }
  CHECK(named == std::vector<std::string>{train, val});
  CHECK(Json::parse(read_text(options.out + "/summary.json"))["unreadable"] == 2);
  CHECK(contains(read_text(options.out + "/report.html"), "2 images could not be read"));
}

TEST_CASE("a loss that is not finite ends a pretraining with its last checkpoint kept", "[cpu]") {
  const Images images;
  app::PretrainOptions options = options_for(images, "run");
  options.checkpoint_every = 1;
  options.lr = 1e30;  // the first update ruins the weights
  options.clip = 0.0;
  options.warmup = 0;
  std::string message;
  try {
    pretrain(options);
  } catch (const Error& error) {
    message = error.what();
  }
  CAPTURE(message);
  CHECK(contains(message, "epoch 1, step 2"));
  CHECK(contains(message, "checkpoints/step-1"));
  CHECK(contains(message, "--lr"));
  CHECK(fs::exists(options.out + "/checkpoints/last/training.safetensors"));
}

TEST_CASE("what a pretraining cannot do is refused before it begins", "[cpu]") {
  const Images images;
  const auto refused = [&](const std::string& arguments, int code, const std::string& part) {
    const Outcome outcome = run_program("pretrain " + arguments + " --device cpu --init " + images.model());
    CAPTURE(arguments, outcome.err);
    CHECK(outcome.code == code);
    CHECK(contains(outcome.err, part));
    CHECK_FALSE(fs::exists(images.run("run") + "/checkpoints"));
  };
  const std::string out = " --out " + images.run("run");
  refused(images.root(), 2, "--out");
  refused(images.run("nowhere") + out, 3, "nowhere");
  refused(images.root() + "/train" + out, 3, "train");
  refused(images.root() + out, 2, "--batch 128: there are 24 training images");
  refused(images.root() + " --batch 6 --epochs 2 --warmup 3" + out, 2, "--warmup 3");
  refused(images.root() + " --batch 6 --image-size 18" + out, 3, "region_size");
  refused(images.root() + " --batch 6 --mixup -1" + out, 2, "--mixup");
  refused(images.root() + " --batch 20 --image-size 16384" + out, 4, "not even --batch 1 fits");
}

TEST_CASE("targets of mixed images, and what a model gets right of a batch", "[cpu]") {
  io::ImageBatch batch;
  batch.labels = {0, 2, 1};
  batch.partners = {1, 2, 0};
  batch.lambda = 0.75;
  const std::vector<double> targets = app::mixed_targets(batch, 3);
  CHECK(targets == std::vector<double>{0.75, 0.25, 0.0, 0.0, 0.0, 1.0, 0.25, 0.75, 0.0});

  // All scores equal: the lowest class is the answer, and the first five are its top five.
  ModelConfig config;
  config.layers = {{3, Expansion::horizontal_cat}, {6, Expansion::vertical_cat}, {12, {}}};
  config.region_size = 4;
  config.num_classes = 7;
  PixelMamba model(cpu(), config, DType::f32, 1);
  for (Parameter& parameter : model.parameters()) {
    if (!parameter.name.starts_with("head.")) continue;
    Tensor head = parameter.value.value();  // shares the network's memory
    head.fill_zero();
  }
  batch.labels = {0, 4, 5, 0};
  batch.partners = batch.labels;
  batch.images = 3;  // the fourth only fills the batch
  batch.size = 4;
  batch.rgb.assign(4 * 4 * 4 * 3, 100);
  const app::BatchScore score = app::score_batch(cpu(), model, batch);
  CHECK(score.images == 3);
  CHECK(score.top1 == 1);
  CHECK(score.top5 == 2);
  CHECK(std::abs(score.loss - 3.0 * std::log(7.0)) < 1e-6);
}

}  // namespace pm::test
