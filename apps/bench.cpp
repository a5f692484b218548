// bench: speed of operators, of image batches and of slides, on either device.
#include "apps/bench.h"

#include <algorithm>
#include <cstdio>
#include <fstream>

#include "apps/command_line.h"
#include "engine/core/check.h"

namespace pm::app {
namespace {

constexpr size_t kFlushBytes = size_t{256} << 20;  // several times the L2 cache

// What a row measures; everything else in it says which row it is.
constexpr const char* kMeasured[] = {"ms",      "images_per_s", "mpx_per_s",   "gb_per_s",        "gexp_per_s",
                                     "peak_gb", "floor_share",  "baseline_ms", "ms_over_baseline"};

// The name of a row, whatever the order of its keys.
std::string row_name(nlohmann::json row) {
  for (const char* key : kMeasured) row.erase(key);
  return row.dump();
}

}  // namespace

double median_ms(Context& ctx, int64_t repeats, bool flush, const std::function<void()>& work) {
  Tensor trash;
  if (flush && !ctx.device().is_cpu()) trash = Tensor::empty(ctx, {static_cast<int64_t>(kFlushBytes)}, DType::u8);
  const auto once = [&] {
    if (trash.defined()) trash.fill_zero();
    return ctx.backend().time_ms(work);
  };
  once();
  const double estimate = std::max(once(), 1e-3);
  if (repeats == 0) repeats = std::clamp<int64_t>(static_cast<int64_t>(2000.0 / estimate), 3, 50);
  std::vector<double> times;
  for (int64_t i = 0; i < repeats; ++i) times.push_back(once());
  std::nth_element(times.begin(), times.begin() + static_cast<int64_t>(times.size() / 2), times.end());
  return times[times.size() / 2];
}

BenchReport::BenchReport(const BenchOptions& options)
    : json_(options.run.json), compares_(!options.baseline.empty()), tolerance_(options.tolerance) {
  if (!compares_) return;
  std::ifstream file(options.baseline);
  PM_CHECK(file.good(), IoError, "--baseline {}: cannot read the file", options.baseline);
  std::string line;
  for (int64_t number = 1; std::getline(file, line); ++number) {
    if (line.empty()) continue;
    const auto row = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
    PM_CHECK(row.is_object() && row.contains("bench") && row.contains("ms") && row["ms"].is_number() && row["ms"] > 0.0,
             IoError, "--baseline {}: line {} is not a row of `pixel-mamba bench .. --json`", options.baseline, number);
    baseline_ms_[row_name(row)] = row["ms"].get<double>();
  }
  PM_CHECK(!baseline_ms_.empty(), IoError,
           "--baseline {}: the file has no rows; write it with `pixel-mamba bench .. --json > FILE`", options.baseline);
}

void BenchReport::add(const nlohmann::ordered_json& what, nlohmann::ordered_json measured, const std::string& text) {
  ++rows_;
  const double ms = measured.at("ms").get<double>();
  std::string comparison;
  if (const auto before = baseline_ms_.find(row_name(what)); before != baseline_ms_.end()) {
    const double ratio = ms / before->second;
    const bool slower = ratio > 1.0 + tolerance_ / 100.0;
    ++compared_;
    slower_ += slower ? 1 : 0;
    measured["baseline_ms"] = before->second;
    measured["ms_over_baseline"] = ratio;
    comparison = fmt::format("  | before {:.3f} ms, now {:.3f}, ratio {:.3f}{}", before->second, ms, ratio,
                             slower ? " SLOWER" : "");
  } else if (compares_) {
    comparison = "  | not in the baseline";
  }
  if (json_) {
    nlohmann::ordered_json line = what;
    line.update(measured);
    fmt::print("{}\n", line.dump());
  } else {
    fmt::print("{}{}\n", text, comparison);
  }
  std::fflush(stdout);
}

int BenchReport::finish() const {
  if (!compares_) return kDone;
  fmt::print(stderr, "{} of {} row(s) are in the baseline, {} slower by more than {} %\n", compared_, rows_, slower_,
             tolerance_);
  PM_CHECK(compared_ > 0, UsageError, "--baseline: the file has no row with these sizes, precision and mode");
  return slower_ > 0 ? 1 : kDone;
}

void add_bench(CLI::App& app, Command& command) {
  auto options = std::make_shared<BenchOptions>();
  CLI::App* verb = app.add_subcommand("bench", "Measure speed: operators, batches of images, slides");
  verb->require_subcommand(1);
  const auto add_common = [&](CLI::App* kind) {
    kind->add_option("--repeats", options->repeats,
                     "timed runs, of which the median counts; 0: as many as fit two seconds")
        ->capture_default_str();
    kind->add_option("--baseline", options->baseline, "compare with an earlier run: a file of what --json printed")
        ->type_name("FILE");
    kind->add_option("--tolerance", options->tolerance,
                     "exit with 1 when a row is slower than the baseline by more percent")
        ->capture_default_str()
        ->check(CLI::NonNegativeNumber);
    add_run_options(*kind, options->run);
  };
  const auto add_model = [&](CLI::App* kind) {
    kind->add_option("--model", options->model, "6m, 21m or nano")
        ->capture_default_str()
        ->check(CLI::IsMember({"6m", "21m", "nano"}));
    kind->add_option("--mode", options->mode, "infer or train (forward, backward, clipping, AdamW)")
        ->capture_default_str()
        ->check(CLI::IsMember({"infer", "train"}));
    kind->add_option("--size", options->size, "pixels per side")->check(CLI::PositiveNumber);
    kind->add_option("--region-size", options->region_size,
                     "pixels per side of a region, a multiple of 32; default 224")
        ->check(CLI::PositiveNumber);
    add_common(kind);
    kind->footer(
        kind->get_footer() +
        fmt::format("\nThe floor, on a GPU, is the time for the exponentials alone: the sum over layers of\n"
                    "tokens * d_inner * d_state * 2 (directions) / {:.3g} per second, the rate of an H200's exp unit;\n"
                    "a training step does {} times as many (forward, recomputed forward, backward).\n"
                    "floor_share = floor / measured time.",
                    kExpsPerSecond, kTrainingFloor));
  };
  CLI::App* ops_kind = verb->add_subcommand("ops", "Single operators at the sizes of the published models");
  ops_kind->add_option("--d-inner", options->d_inner, "one shape of your own: channels")->check(CLI::PositiveNumber);
  ops_kind->add_option("--seq-len", options->seq_len, "and tokens")->check(CLI::PositiveNumber);
  ops_kind->add_option("--batch", options->batch, "and sequences")->check(CLI::PositiveNumber);
  ops_kind->add_option("--d-state", options->d_state, "states per channel")
      ->capture_default_str()
      ->check(CLI::Range(1, 64));
  add_common(ops_kind);
  ops_kind->callback([options, &command, ops_kind] {
    if (ops_kind->count("--batch") == 0) options->batch = 1;
    command.exit_code = bench_ops(*options);
  });
  CLI::App* images = verb->add_subcommand("images", "A batch of images through a model");
  add_model(images);
  images->add_option("--batch", options->batch, "images per batch")->capture_default_str()->check(CLI::PositiveNumber);
  const CLI::Option* graph = images->add_flag(
      "--graph,!--no-graph", options->graph,
      "with --mode train: capture the whole step once and replay it, same bits, fewer calls of the host; on a GPU the "
      "default, --no-graph launches kernel by kernel");
  images->callback([options, &command, graph] {
    options->graph_chosen = graph->count() > 0;
    command.exit_code = bench_model("images", *options);
  });
  CLI::App* slide = verb->add_subcommand("slide", "One slide through a model");
  add_model(slide);
  slide->callback([options, &command] { command.exit_code = bench_model("slide", *options); });
}

}  // namespace pm::app
