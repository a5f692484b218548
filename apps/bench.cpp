// bench: speed of operators, of image batches and of slides, on either device.
#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "apps/common.h"
#include "apps/train_step.h"
#include "autograd/ops/cross_entropy.h"
#include "autograd/ops/selective_scan.h"
#include "engine/core/check.h"
#include "engine/ops/elementwise/uniform.h"
#include "engine/ops/loss/cross_entropy.h"

namespace pm::app {
namespace {

// Ceilings of an H200, for the share of the floor: device copy, and the exponential unit.
constexpr double kBytesPerSecond = 4.25e12;
constexpr double kExpsPerSecond = 4.2e12;
constexpr size_t kFlushBytes = size_t{256} << 20;  // several times the L2 cache

struct BenchOptions {
  RunOptions run;
  std::string model = "6m", mode = "infer";
  int64_t batch = 128, size = 0, repeats = 0;
  int64_t d_inner = 0, seq_len = 0, d_state = 16;
};

// Median of `repeats` timed runs after two warm-up runs; 0 repeats: as many as fit two seconds, 3 to 50.
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

struct ScanShape {
  int64_t batch, d_inner, seq_len;
};

void bench_scan(Context& ctx, const BenchOptions& options, const ScanShape& shape, DType dtype) {
  const auto random = [&](const Shape& s, DType type, double low, double high) { return ops::uniform(ctx, s, type, low, high); };
  const int64_t n = options.d_state;
  const Shape wide{shape.batch, shape.seq_len, shape.d_inner}, narrow{shape.batch, shape.seq_len, n};
  const DType param = param_dtype(dtype);
  std::vector<Variable> v;
  for (const Tensor& t : {random(wide, dtype, -1, 1), random(wide, dtype, -1, 1), random({shape.d_inner, n}, param, -4, -0.5),
                          random(narrow, dtype, -1, 1), random(narrow, dtype, -1, 1), random({shape.d_inner}, param, -1, 1),
                          random(wide, dtype, -1, 1), random({shape.d_inner}, param, -6, -2)}) {
    v.emplace_back(t, /*requires_grad=*/true);
  }
  const Tensor dout = random(wide, dtype, -1, 1);
  const auto forward = [&] { return selective_scan(ctx, v[0], v[1], v[2], v[3], v[4], v[5], v[6], v[7], /*reverse=*/false); };
  const double elements = static_cast<double>(shape.batch * shape.seq_len);
  const double bytes_per_value = static_cast<double>(size_of(dtype));
  for (const bool with_backward : {false, true}) {
    ctx.backend().reset_peak();
    const double ms = median_ms(ctx, options.repeats, true, [&] {
      if (!with_backward) {
        const NoGrad no_grad(ctx);
        forward();
        return;
      }
      backward(ctx, forward(), dout);
      for (Variable& leaf : v) leaf.clear_grad();
    });
    // Forward: u, delta, z in, out out, B and C in. Backward: the same again, dout in, four gradients of that size out.
    const double wide_values = with_backward ? 12.0 : 4.0, narrow_values = with_backward ? 6.0 : 2.0;
    const double bytes = elements * bytes_per_value *
                         (wide_values * static_cast<double>(shape.d_inner) + narrow_values * static_cast<double>(n));
    const double exps = elements * static_cast<double>(shape.d_inner * n) * (with_backward ? 2.0 : 1.0);
    const double floor_ms = 1e3 * std::max(bytes / kBytesPerSecond, exps / kExpsPerSecond);
    const double peak_gb = static_cast<double>(ctx.backend().memory().peak_bytes) / 1e9;
    const char* mode = with_backward ? "forward+backward" : "forward";
    if (options.run.json) {
      nlohmann::ordered_json line = {{"bench", "ops"}, {"op", "selective_scan"}, {"batch", shape.batch}, {"d_inner", shape.d_inner},
                                     {"seq_len", shape.seq_len}, {"d_state", n}, {"precision", options.run.precision},
                                     {"mode", mode}, {"ms", ms}, {"gb_per_s", bytes / ms / 1e6}, {"gexp_per_s", exps / ms / 1e6},
                                     {"peak_gb", peak_gb}};
      if (!ctx.device().is_cpu()) line["floor_share"] = floor_ms / ms;
      fmt::print("{}\n", line.dump());
    } else {
      fmt::print("{:<16} {:>5} {:>8} {:>9} {:<17} {:>10.3f} {:>9.1f} {:>9.1f} {:>8}\n", "selective_scan", shape.batch, shape.d_inner,
                 shape.seq_len, mode, ms, bytes / ms / 1e6, exps / ms / 1e6,
                 ctx.device().is_cpu() ? std::string("-") : fmt::format("{:.1f} %", 100.0 * floor_ms / ms));
    }
    std::fflush(stdout);
  }
}

int run_ops(const BenchOptions& options) {
  const auto ctx = make_context(options.run);
  const DType dtype = activation_type(options.run, ctx->device());
  std::vector<ScanShape> shapes = {{1, 6, 1'048'576}, {1, 6, 8'388'608}, {1, 96, 524'288}, {1, 384, 131'072}, {64, 384, 785}};
  if (ctx->device().is_cpu()) shapes = {{1, 6, 50'176}, {1, 96, 6'272}, {1, 384, 784}};
  if (options.d_inner > 0 || options.seq_len > 0) {
    shapes = {{options.batch, std::max<int64_t>(options.d_inner, 1), std::max<int64_t>(options.seq_len, 1)}};
  }
  if (!options.run.json) {
    fmt::print("{:<16} {:>5} {:>8} {:>9} {:<17} {:>10} {:>9} {:>9} {:>8}\n", "operator", "batch", "d_inner", "seq_len", "mode", "ms",
               "GB/s", "Gexp/s", "of floor");
  }
  for (const ScanShape& shape : shapes) bench_scan(*ctx, options, shape, dtype);
  return kDone;
}

// One forward pass, or one training step, over a batch of square images.
void bench_model(const std::string& kind, const BenchOptions& options, int64_t batch, int64_t size) {
  const auto ctx = make_context(options.run);
  const DType activation = activation_type(options.run, ctx->device());
  PixelMamba model(*ctx, published_config(options.model, 1000), activation, options.run.seed);
  std::vector<uint8_t> pixels(static_cast<size_t>(batch * size * size * 3));
  const RngState draw = ctx->rng().next();
  for (size_t i = 0; i < pixels.size(); ++i) pixels[i] = static_cast<uint8_t>(256.0 * uniform_at(draw, static_cast<int64_t>(i / 16)));
  const Variable image(Tensor::from_host(*ctx, {batch, size, size, 3}, pixels));
  const Tensor targets = ops::one_hot(*ctx, std::vector<int64_t>(static_cast<size_t>(batch), 1), 1000, param_dtype(activation));
  AdamW optimiser = make_adamw(*ctx, model, 0.05);
  const bool train = options.mode == "train";
  ctx->backend().reset_peak();
  const double ms = median_ms(*ctx, options.repeats, false, [&] {
    if (!train) {
      const NoGrad no_grad(*ctx);
      model.forward(*ctx, image);
      return;
    }
    backward(*ctx, cross_entropy(*ctx, model.forward(*ctx, image).logits, targets, 0.1));
    apply_gradients(*ctx, model, optimiser, {1e-5, 1.0, 1.0});
  });
  const double peak_gb = static_cast<double>(ctx->backend().memory().peak_bytes) / 1e9;
  const double images = 1e3 * static_cast<double>(batch) / ms, megapixels = images * static_cast<double>(size * size) / 1e6;
  if (options.run.json) {
    nlohmann::ordered_json line = {{"bench", kind}, {"model", options.model}, {"batch", batch}, {"size", size},
                                   {"precision", options.run.precision}, {"mode", options.mode}, {"ms", ms}};
    line[kind == "images" ? "images_per_s" : "mpx_per_s"] = kind == "images" ? images : megapixels;
    line["peak_gb"] = peak_gb;
    fmt::print("{}\n", line.dump());
  } else {
    fmt::print("{} {} {}, batch {} of {} x {}, {}: {:.2f} ms, {:.1f} images/s, {:.2f} Mpixel/s, peak {:.2f} GB\n", options.model,
               options.mode, options.run.precision, batch, size, size, ctx->device().str(), ms, images, megapixels, peak_gb);
  }
}

}  // namespace

void add_bench(CLI::App& app, Command& command) {
  auto options = std::make_shared<BenchOptions>();
  CLI::App* verb = app.add_subcommand("bench", "Measure speed: operators, batches of images, slides");
  verb->require_subcommand(1);
  const auto add_common = [&](CLI::App* kind) {
    kind->add_option("--repeats", options->repeats, "timed runs, of which the median counts; 0: as many as fit two seconds")
        ->capture_default_str();
    add_run_options(*kind, options->run);
  };
  const auto add_model = [&](CLI::App* kind) {
    kind->add_option("--model", options->model, "6m or 21m")->capture_default_str()->check(CLI::IsMember({"6m", "21m"}));
    kind->add_option("--mode", options->mode, "infer or train (forward, backward, clipping, AdamW)")
        ->capture_default_str()
        ->check(CLI::IsMember({"infer", "train"}));
    kind->add_option("--size", options->size, "pixels per side")->check(CLI::PositiveNumber);
  };
  CLI::App* ops_kind = verb->add_subcommand("ops", "Single operators at the sizes of the published models");
  ops_kind->add_option("--d-inner", options->d_inner, "one shape of your own: channels")->check(CLI::PositiveNumber);
  ops_kind->add_option("--seq-len", options->seq_len, "and tokens")->check(CLI::PositiveNumber);
  ops_kind->add_option("--batch", options->batch, "and sequences")->check(CLI::PositiveNumber);
  ops_kind->add_option("--d-state", options->d_state, "states per channel")->capture_default_str()->check(CLI::Range(1, 64));
  add_common(ops_kind);
  ops_kind->callback([options, &command, ops_kind] {
    if (ops_kind->count("--batch") == 0) options->batch = 1;
    command.exit_code = run_ops(*options);
  });
  CLI::App* images = verb->add_subcommand("images", "A batch of images through a model");
  add_model(images);
  images->add_option("--batch", options->batch, "images per batch")->capture_default_str()->check(CLI::PositiveNumber);
  add_common(images);
  images->callback([options] { bench_model("images", *options, options->batch, options->size > 0 ? options->size : 224); });
  CLI::App* slide = verb->add_subcommand("slide", "One slide through a model");
  add_model(slide);
  add_common(slide);
  slide->callback([options] { bench_model("slide", *options, 1, options->size > 0 ? options->size : 4480); });
}

}  // namespace pm::app
