// Fine-tuning that stops, dies and goes on: the end is the same, bit for bit.
#include <fcntl.h>
#include <fmt/format.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>
#include <map>
#include <thread>

#include "apps/finetune.h"
#include "apps/guarded_gradients.h"
#include "apps/memory_check.h"
#include "autograd/ops/cross_entropy.h"
#include "engine/ops/elementwise/scaled_add.h"
#include "engine/ops/loss/cross_entropy.h"
#include "io/checkpoint/model_folder.h"
#include "tests/apps/run_checks.h"
#include "tests/apps/run_program.h"
#include "tests/apps/small_runs.h"
#include "tests/io/failing_files.h"
#include "tests/report/event_reader.h"
#include "tests/support/test.h"

namespace pm::test {
namespace {

namespace fs = std::filesystem;

// A table of striped pictures with classes, and a small model to start from.
class Cohort {
 public:
  explicit Cohort(int slides) {
    write_small_model(model(), Head::classification, 2);
    std::ofstream file(table());
    file << "case_id,path,label\n";
    for (int i = 0; i < slides; ++i) {
      file << "case" << i << "," << fs::path(write_stripes(dir_.path(), i)).filename().string() << "," << i % 2 << "\n";
    }
  }
  std::string table() const { return dir_.path() + "/table.csv"; }
  std::string model() const { return dir_.path() + "/init"; }
  std::string run(const std::string& name) const { return dir_.path() + "/" + name; }

 private:
  TempDir dir_;
};

// Two folds of 8 and 2 to 6 and 4 slides, everything random or stateful switched on.
app::FinetuneOptions options_for(const Cohort& cohort, const std::string& run) {
  app::FinetuneOptions options;
  options.table = cohort.table();
  options.init = cohort.model();
  options.out = cohort.run(run);
  options.run.device = "cpu";
  options.run.seed = 5;
  options.folds = 2;
  options.epochs = 2;
  options.accumulate = 2;
  options.lr = 3e-3;
  options.warmup = 2;
  options.drop_path = 0.3;
  options.ema = 0.9;
  options.keep = 1;
  return options;
}

int finetune(const app::FinetuneOptions& options, io::FileOps& files, int signal = 0) {
  const Quiet quiet;
  return app::run_finetune(options, {files, [signal] { return signal; }});
}
int finetune(const app::FinetuneOptions& options, int signal = 0) {
  FailingFiles files;
  return finetune(options, files, signal);
}

int64_t steps_of(const std::string& run) {
  int64_t steps = 0;
  for (const fs::directory_entry& fold : fs::directory_iterator(run)) {
    if (fs::exists(fold.path() / "summary.json")) {
      steps += Json::parse(read_text((fold.path() / "summary.json").string()))["step"].get<int64_t>();
    }
  }
  return steps;
}

}  // namespace

TEST_CASE("a run that is stopped and resumed ends like one that was not", "[cpu]") {
  const Cohort cohort(10);
  REQUIRE(finetune(options_for(cohort, "whole")) == 0);
  const int64_t steps = steps_of(cohort.run("whole"));
  REQUIRE(steps == 20);  // each slide trains in one of two folds, twice
  const Json summary = Json::parse(read_text(cohort.run("whole") + "/summary.json"));
  CHECK(summary["folds"].size() == 2);
  CHECK(fs::exists(cohort.run("whole") + "/fold-0/checkpoints/last/model.safetensors"));
  // In the middle of an accumulation, after an update within an epoch, at its end, at the end of a fold, in the second fold.
  for (const int64_t stop : {1, 2, 4, 5, 8, 10, 13}) {
    CAPTURE(stop);
    const std::string name = "stopped" + std::to_string(stop);
    app::FinetuneOptions options = options_for(cohort, name);
    options.stop_after = stop;
    CHECK(finetune(options) == 0);
    CHECK_FALSE(fs::exists(cohort.run(name) + "/predictions.csv"));
    options.stop_after = 0;
    options.resume = true;
    CHECK(finetune(options) == 0);
    check_same_run(cohort.run(name), cohort.run("whole"));
  }
  // Three steps at a time, and once more when all is done.
  app::FinetuneOptions options = options_for(cohort, "often");
  options.resume = true;
  options.stop_after = 3;
  for (int i = 0; i < 9; ++i) CHECK(finetune(options) == 0);
  check_same_run(cohort.run("often"), cohort.run("whole"));
}

TEST_CASE("a signal ends a run with a checkpoint that goes on", "[cpu]") {
  const Cohort cohort(6);
  REQUIRE(finetune(options_for(cohort, "whole")) == 0);
  app::FinetuneOptions options = options_for(cohort, "stopped");
  CHECK(finetune(options, SIGTERM) == 143);
  options.resume = true;
  CHECK(finetune(options, SIGINT) == 130);
  CHECK(finetune(options) == 0);
  check_same_run(cohort.run("stopped"), cohort.run("whole"));
}

TEST_CASE("cross validation by published splits ends in a table that evaluate reads", "[cpu]") {
  const TempDir dir;
  const std::string model = write_small_model(dir.path() + "/init", Head::classification, 2);
  std::ofstream table(dir.path() + "/table.csv");
  table << "case_id,slide_id,path,survival_months,censorship\n";
  for (int i = 0; i < 12; ++i) {  // two slides of each of the first two cases
    table << "case" << (i < 4 ? i / 2 : i) << ",slide" << i << ","
          << fs::path(write_stripes(dir.path(), i)).filename().string() << "," << (i < 4 ? 5 + 30 * (i / 2) : 3 * i)
          << "," << (i >= 4 && i % 4 == 0 ? 1 : 0) << "\n";
  }
  table.close();
  fs::create_directory(dir.path() + "/splits");
  std::ofstream(dir.path() + "/splits/splits_0.csv")
      << "train,val,test\ncase4,case8,case0\ncase5,case9,case1\ncase6,,case7\ncase10,,\ncase11,,\n";
  std::ofstream(dir.path() + "/splits/splits_1.csv")
      << "train,val,test\ncase0,case7,case4\ncase1,,case5\ncase8,,case6\ncase9,,case10\n";
  const std::string out = dir.path() + "/run";
  const Outcome outcome = run_program("finetune " + dir.path() + "/table.csv --device cpu --json --epochs 2 --splits " +
                                      dir.path() + "/splits --init " + model + " --out " + out);
  CAPTURE(outcome.err);
  REQUIRE(outcome.code == 0);
  CHECK(contains(outcome.err, "fold 1: 6 training, 4 held out slides, not started"));
  const Json summary = Json::parse(read_text(out + "/summary.json"));
  REQUIRE(summary["folds"].size() == 2);
  CHECK(summary["folds"][0]["cases"] == 3);
  CHECK(summary["folds"][0]["slides"] == 5);
  CHECK(summary["folds"][0].contains("c_index"));
  CHECK(json_lines(outcome.out).back().contains("over_folds"));
  const Json pooled = summary["pooled"], interval = pooled["bootstrap"]["c_index"];
  CHECK(json_lines(outcome.out).back()["pooled"] == pooled);
  CHECK(pooled["n"] == 7);  // cases held out by one of the folds
  CHECK(interval["low"].get<double>() <= pooled["c_index"].get<double>());
  CHECK(pooled["c_index"].get<double>() <= interval["high"].get<double>());
  const std::string report = read_text(out + "/report.html");
  CHECK(contains(report, "oncordance index"));
  CHECK(contains(report, "events"));
  CHECK(fs::exists(out + "/kaplan_meier.svg"));
  CHECK(fs::exists(out + "/training_curves.svg"));
  const Outcome evaluated = run_program("evaluate " + out + "/predictions.csv --task survival --json");
  CAPTURE(evaluated.err);
  CHECK(evaluated.code == 0);
  CHECK(json_lines(evaluated.out)[0]["c_index"] == pooled["c_index"]);
  CHECK(json_lines(evaluated.out)[0]["median_split"] == pooled["median_split"]);
  const Outcome again = run_program("finetune " + dir.path() + "/table.csv --device cpu --json --epochs 2 --splits " +
                                    dir.path() + "/splits --init " + model + " --resume --out " + out);
  CHECK(again.code == 0);
  CHECK(contains(again.err, "fold 0: 5 training, 5 held out slides, done"));
}

namespace {

// A run of one division of few slides: few file calls.
app::FinetuneOptions short_run(const Cohort& cohort, const std::string& run) {
  app::FinetuneOptions options = options_for(cohort, run);
  options.folds = 0;
  options.ema = 0.0;
  options.epochs = 1;
  options.checkpoint_every = 3;
  options.resume = true;
  return options;
}

void fail_everywhere(FailingFiles::How how, int64_t stride) {
  const Cohort cohort(5);
  check_faults(cohort.run(""), how, stride, [&](const std::string& folder, io::FileOps& files) {
    return finetune(short_run(cohort, fs::path(folder).filename().string()), files);
  });
}

}  // namespace

TEST_CASE("a failing disk ends a run, and it goes on to the same end", "[cpu]") {
  fail_everywhere(FailingFiles::How::error, 13);
}

TEST_CASE("a failure at every sync, rename and open of a run", "[slow]") {
  fail_everywhere(FailingFiles::How::error, 1);
}

TEST_CASE("a kill at every sync, rename and open of a run", "[slow]") { fail_everywhere(FailingFiles::How::kill, 1); }

namespace {

// The curves of a run as TensorBoard shows them, without the clock: "tag step" -> value.
std::map<std::string, float> curves_of(const std::string& folder) {
  std::map<std::string, float> curves;
  for (const EventPoint& point : join_files(folder)) {
    if (point.tag == "train/seconds") continue;
    const bool is_new = curves.emplace(fmt::format("{} {}", point.tag, point.step), point.value).second;
    CAPTURE(folder, point.tag, point.step);
    CHECK(is_new);
  }
  return curves;
}

}  // namespace

TEST_CASE("the curves for TensorBoard say what metrics.jsonl says, each point once, however often a run dies",
          "[cpu]") {
  const Cohort cohort(7);
  app::FinetuneOptions options = options_for(cohort, "whole");
  options.validate_every = 1;
  FailingFiles counting;
  REQUIRE(finetune(options, counting) == 0);
  std::map<std::string, float> whole[2];
  for (const int fold : {0, 1}) {
    const std::string folder = fmt::format("{}/fold-{}", cohort.run("whole"), fold);
    whole[fold] = curves_of(folder);
    int64_t epochs = 0;
    for (const Json& line : json_lines(read_text(folder + "/metrics.jsonl"))) {
      const auto at = [&](const std::string& tag) {
        return whole[fold].at(fmt::format("{} {}", tag, line["step"].get<int64_t>()));
      };
      CHECK(at("train/loss") == line["loss"].get<float>());
      CHECK(at("train/lr") == line["lr"].get<float>());
      CHECK(at("train/grad_norm") == line["grad_norm"].get<float>());
      CHECK(at("validation/loss") == line["validation"]["loss"].get<float>());
      CHECK(at("validation/macro_f1") == line["validation"]["macro_f1"].get<float>());
      ++epochs;
    }
    CHECK(epochs == 2);
    CHECK(whole[fold].contains("train/update_loss 2"));  // the first update is after two slides
  }
  const auto calls = static_cast<int64_t>(counting.calls().size());
  options = options_for(cohort, "killed");
  options.resume = true;
  options.checkpoint_every = 3;  // in the middle of an accumulation too
  for (int64_t at = 60; at < calls; at += calls / 5) {
    FailingFiles files(at, FailingFiles::How::kill);
    try {
      finetune(options, files);
    } catch (const Killed&) {
    }
  }
  CHECK(finetune(options) == 0);
  CHECK(finetune(options) == 0);  // once more when all is done
  for (const int fold : {0, 1}) CHECK(curves_of(fmt::format("{}/fold-{}", cohort.run("killed"), fold)) == whole[fold]);
}

TEST_CASE("a damaged checkpoint gives way to the one before", "[cpu]") {
  const Cohort cohort(6);
  app::FinetuneOptions options = options_for(cohort, "whole");
  options.folds = 0;
  options.keep = 3;
  REQUIRE(finetune(options) == 0);
  options.out = cohort.run("damaged");
  options.checkpoint_every = 2;
  options.stop_after = 5;
  REQUIRE(finetune(options) == 0);
  fs::resize_file(cohort.run("damaged") + "/checkpoints/step-5/training.safetensors", 1000);
  options.stop_after = 0;
  options.resume = true;
  CHECK(finetune(options) == 0);
  CHECK(read_text(cohort.run("damaged") + "/model/model.safetensors") ==
        read_text(cohort.run("whole") + "/model/model.safetensors"));
  CHECK(metrics_of(cohort.run("damaged") + "/metrics.jsonl") == metrics_of(cohort.run("whole") + "/metrics.jsonl"));
}

TEST_CASE("a slide that gives no finite gradient is skipped and named", "[cpu]") {
  ModelConfig config;
  config.layers = {{3, Expansion::horizontal_cat}, {6, {}}};
  config.region_size = 8;
  config.num_classes = 2;
  PixelMamba model(cpu(), config, DType::f32, 1);
  const Tensor image = Tensor::from_host(cpu(), {1, 8, 8, 3}, std::vector<uint8_t>(192, 90));
  const Tensor target = ops::one_hot(cpu(), {1}, 2, DType::f32);
  const auto learn = [&] {
    backward(cpu(), cross_entropy(cpu(), model.forward(cpu(), Variable(image)).logits, target, 0.0));
  };
  learn();
  CHECK(app::accumulate_if_finite(cpu(), model, std::vector<Tensor>(model.parameters().size())).empty());
  const std::vector<Tensor> first = app::take_gradients(model);
  learn();
  CHECK(app::accumulate_if_finite(cpu(), model, first).empty());  // twice the same gradient
  for (size_t i = 0; i < first.size(); ++i) {
    check_close(widen(model.parameters()[i].value.grad()), widen(ops::scaled_add(cpu(), first[i], 2.0, first[i], 0.0)),
                1e-6);
  }
  const std::vector<Tensor> kept = app::take_gradients(model);
  learn();
  std::vector<float> broken(static_cast<size_t>(model.parameters()[3].value.value().numel()), 1.0f);
  broken.back() = std::numeric_limits<float>::infinity();
  model.parameters()[3].value.set_grad(Tensor::from_host(cpu(), model.parameters()[3].value.shape(), broken));
  CHECK(app::accumulate_if_finite(cpu(), model, kept) == model.parameters()[3].name);
  for (size_t i = 0; i < kept.size(); ++i) check_same_bits(model.parameters()[i].value.grad(), kept[i]);

  CHECK(app::locate_not_finite(cpu(), model, image, 0.0, {}) == "the head or the loss");
  Tensor weight = model.parameters().back().value.value();
  std::vector<float> values(static_cast<size_t>(weight.numel()), std::nanf(""));
  weight.copy_from_host(values.data());
  CHECK(app::locate_not_finite(cpu(), model, image, 0.0, {}) == "the weight head.bias");
}

TEST_CASE("ten slides in a row without a finite loss end the run with its checkpoint kept", "[cpu]") {
  const Cohort cohort(6);
  app::FinetuneOptions options = options_for(cohort, "run");
  options.folds = 0;
  options.lr = 1e30;  // the first update ruins the weights
  options.clip = 0.0;
  options.warmup = 0;
  options.epochs = 4;
  options.checkpoint_every = 1;
  std::string message;
  try {
    finetune(options);
  } catch (const Error& error) {
    message = error.what();
  }
  CAPTURE(message);
  CHECK(contains(message, "10 slides in a row"));
  CHECK(contains(message, "checkpoints/step-"));
  CHECK(fs::exists(cohort.run("run") + "/checkpoints/last/training.safetensors"));
  int64_t skipped = 0;
  for (const Json& line : json_lines(read_text(cohort.run("run") + "/metrics.jsonl")))
    skipped += line.contains("event") ? 1 : 0;
  CHECK(skipped == 10);
}

TEST_CASE("options that contradict themselves or the run are refused", "[cpu]") {
  const Cohort cohort(4);
  const std::string base = "finetune " + cohort.table() + " --device cpu --init " + cohort.model();
  const auto refused = [&](const std::string& arguments, int code, const std::string& part) {
    const Outcome outcome = run_program(base + " " + arguments);
    CAPTURE(arguments, outcome.err);
    CHECK(outcome.code == code);
    CHECK(contains(outcome.err, part));
  };
  const std::string out = " --out " + cohort.run("run");
  refused("--keep 0" + out, 2, "--keep");
  refused("--folds 1" + out, 2, "--folds");
  refused("--folds 2 --splits x" + out, 2, "--folds");
  refused("--fold-column x --folds 2" + out, 2, "--fold");
  refused("--time-column x" + out, 2, "--event-column");
  refused("--event-column x" + out, 2, "--time-column");
  refused("--time-column x --event-column x --censorship-column x" + out, 2, "--censorship-column");
  refused("--fold-column nowhere" + out, 3, "nowhere");
  refused("--ema 1" + out, 2, "--ema");
  refused("--drop-path 1" + out, 2, "--drop-path");
  refused("--stop-after 0" + out, 2, "--stop-after");
  refused("--splits " + cohort.run("nowhere") + out, 3, "nowhere");
  CHECK_FALSE(fs::exists(cohort.run("run")));
  refused("--epochs 1 --warmup 2" + out, 2, "--warmup 2");
  CHECK(run_program(base + " --epochs 1" + out).code == 0);  // nothing was saved there: no --resume is needed
  refused("--epochs 1" + out, 2, "--resume");
  refused("--epochs 1 --resume --lr 1" + out, 2, "--lr");
  std::ofstream(cohort.run("run") + "/config.json") << "{}";
  refused("--epochs 1 --resume" + out, 3, "config.json");
}

TEST_CASE("a slide that is too large for the memory is refused with what would fit", "[cpu]") {
  const ModelConfig config = named_config("6m", 4);
  const double mpp = 4.0;
  app::require_memory(cpu(), config, DType::f32, {{"small", 300, 200}}, mpp);
  constexpr int64_t kWidth = 300'000, kHeight = 100'000;
  std::string message;
  try {
    app::require_memory(cpu(), config, DType::f32,
                        {{"small", 300, 200}, {"huge", kWidth, kHeight}, {"large", kHeight, kHeight}}, mpp);
  } catch (const OutOfMemoryError& error) {
    message = error.what();
  }
  CAPTURE(message);
  CHECK(contains(message, "slide huge: 300000 x 100000 pixels"));
  CHECK(contains(message, "2 slides are too large"));
  const std::string knob = "--mpp ";
  REQUIRE(contains(message, knob));
  const double coarser = std::stod(message.substr(message.find(knob) + knob.size()));
  const auto shrunk = [&](double to) {
    const double factor = mpp / to;
    return app::SlideSize{"huge", static_cast<int64_t>(kWidth * factor), static_cast<int64_t>(kHeight * factor)};
  };
  app::require_memory(cpu(), config, DType::f32, {shrunk(coarser)}, coarser);
  CHECK_THROWS_AS(app::require_memory(cpu(), config, DType::f32, {shrunk(0.95 * coarser)}, coarser), OutOfMemoryError);
}

namespace {

// The program in the background.
pid_t start(const std::vector<std::string>& arguments) {
  const pid_t child = ::fork();
  if (child != 0) return child;
  const int nowhere = ::open("/dev/null", O_WRONLY);
  ::dup2(nowhere, STDOUT_FILENO);
  ::dup2(nowhere, STDERR_FILENO);
  std::vector<char*> words = {const_cast<char*>(PM_PROGRAM)};
  for (const std::string& argument : arguments) words.push_back(const_cast<char*>(argument.c_str()));
  words.push_back(nullptr);
  ::execv(PM_PROGRAM, words.data());
  ::_exit(127);
}

int wait_for(pid_t child) {
  int status = 0;
  ::waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

std::vector<std::string> long_run(const Cohort& cohort, const std::string& name) {
  return {"finetune",
          cohort.table(),
          "--device",
          "cpu",
          "--init",
          cohort.model(),
          "--out",
          cohort.run(name),
          "--epochs",
          "12",
          "--folds",
          "2",
          "--ema",
          "0.9",
          "--drop-path",
          "0.2",
          "--accumulate",
          "3",
          "--lr",
          "0.001",
          "--checkpoint-every",
          "2",
          "--keep",
          "1",
          "--resume"};
}

}  // namespace

TEST_CASE("Ctrl-C and SIGTERM finish the step, save, and end with their exit codes", "[cpu]") {
  const Cohort cohort(6);
  for (const int signal : {SIGINT, SIGTERM}) {
    const std::string name = "run" + std::to_string(signal);
    const pid_t child = start(long_run(cohort, name));
    const std::string first = cohort.run(name) + "/fold-0/checkpoints/last";
    for (int i = 0; i < 3000 && !fs::exists(first); ++i) std::this_thread::sleep_for(std::chrono::milliseconds(10));
    REQUIRE(fs::exists(first));
    ::kill(child, signal);
    CHECK(wait_for(child) == 128 + signal);
    CHECK(wait_for(start(long_run(cohort, name))) == 0);
  }
  check_same_run(cohort.run("run" + std::to_string(SIGINT)), cohort.run("run" + std::to_string(SIGTERM)));
}

TEST_CASE("a disk that is full ends a run with exit code 4", "[cpu]") {
  const Cohort cohort(6);
  const std::string command =
      "finetune " + cohort.table() + " --device cpu --epochs 2 --init " + cohort.model() + " --resume --out ";
  REQUIRE(run_program(command + cohort.run("whole")).code == 0);
  REQUIRE(run_program(command + cohort.run("full") + " --stop-after 3").code == 0);
  const Outcome outcome = run_program(command + cohort.run("full"), "trap '' XFSZ; ulimit -f 40;");
  CAPTURE(outcome.err);
  CHECK(outcome.code == 4);
  CHECK(contains(outcome.err, "training.safetensors"));
  CHECK(fs::exists(cohort.run("full") + "/checkpoints/step-3/state.json"));
  CHECK(run_program(command + cohort.run("full")).code == 0);
  check_same_run(cohort.run("full"), cohort.run("whole"));
}

TEST_CASE("a run that is killed 30 times at random ends like one that was not", "[slow]") {
  const Cohort cohort(6);
  const auto begin = std::chrono::steady_clock::now();
  REQUIRE(wait_for(start(long_run(cohort, "whole"))) == 0);
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  int kills = 0;
  for (int run = 0; kills < 30; ++run) {
    const std::string name = "killed" + std::to_string(run);
    for (int64_t attempt = 0; kills < 30; ++attempt) {
      const pid_t child = start(long_run(cohort, name));
      const double wait = uniform_at(RngState{11, static_cast<uint64_t>(run)}, attempt) * seconds;
      std::this_thread::sleep_for(std::chrono::duration<double>(wait));
      ::kill(child, SIGKILL);
      const int code = wait_for(child);
      if (code == 0) break;  // it was done before
      REQUIRE(code == 128 + SIGKILL);
      ++kills;
    }
    CHECK(wait_for(start(long_run(cohort, name))) == 0);
    CAPTURE(run, kills);
    check_same_run(cohort.run(name), cohort.run("whole"));
  }
}

}  // namespace pm::test
