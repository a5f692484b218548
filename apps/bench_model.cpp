// bench images, bench slide: a whole model, forward or one training step.
#include "apps/bench.h"
#include "apps/train_step.h"
#include "engine/core/check.h"
#include "engine/ops/loss/cross_entropy.h"
#include "layers/model/cost.h"

namespace pm::app {
namespace {

ModelConfig config_of(const BenchOptions& options) {
  ModelConfig config = named_config(options.model, 1000);
  if (options.region_size > 0) config.region_size = options.region_size;
  config.validate();
  return config;
}

Tensor random_image(Context& ctx, int64_t batch, int64_t size) {
  std::vector<uint8_t> pixels(static_cast<size_t>(batch * size * size * 3));
  const RngState draw = ctx.rng().next();
  for (size_t i = 0; i < pixels.size(); ++i) {
    pixels[i] = static_cast<uint8_t>(256.0 * uniform_at(draw, static_cast<int64_t>(i / 16)));
  }
  return Tensor::from_host(ctx, {batch, size, size, 3}, pixels);
}

}  // namespace

int bench_model(const std::string& kind, const BenchOptions& options) {
  BenchReport report(options);
  const bool images = kind == "images", train = options.mode == "train";
  PM_CHECK(!options.graph || train, UsageError, "--graph captures a training step: it needs --mode train");
  const int64_t batch = images ? options.batch : 1, standard = images ? 224 : 4480;
  const int64_t size = options.size > 0                    ? options.size
                       : images && options.region_size > 0 ? options.region_size
                                                           : standard;
  const ModelConfig config = config_of(options);
  const auto ctx = make_context(options.run);
  const bool graph = options.graph_chosen ? options.graph : images && train && !ctx->device().is_cpu();
  const DType activation = activation_type(options.run, ctx->device());
  PixelMamba model(*ctx, config, activation, options.run.seed);
  const Variable image(random_image(*ctx, batch, size));
  std::optional<AdamW> optimiser;
  Tensor targets;
  if (train) {
    targets = ops::one_hot(*ctx, std::vector<int64_t>(static_cast<size_t>(batch), 1), 1000, param_dtype(activation));
    optimiser.emplace(make_adamw(*ctx, model, 0.05)).set_learning_rate(*ctx, 1e-5);
  }
  const auto step = [&] { classification_step(*ctx, model, *optimiser, image, targets); };
  ctx->backend().reset_peak();
  std::unique_ptr<CapturedWork> captured;
  if (graph) {
    step();
    captured = ctx->backend().capture(step);
  }
  const double ms = median_ms(*ctx, options.repeats, false, [&] {
    if (captured != nullptr) return captured->replay();
    if (train) return step();
    const NoGrad no_grad(*ctx);
    model.forward(*ctx, image);
  });

  const double exps =
      static_cast<double>(batch) * model_cost(config, size, size).exponentials * (train ? kTrainingFloor : 1.0);
  const double peak_gb = static_cast<double>(ctx->backend().memory().peak_bytes) / 1e9, gexp_per_s = exps / ms / 1e6;
  const double images_per_s = 1e3 * static_cast<double>(batch) / ms;
  const double mpx_per_s = images_per_s * static_cast<double>(size * size) / 1e6;
  nlohmann::ordered_json what = {{"bench", kind}, {"model", options.model}, {"batch", batch}, {"size", size}};
  if (config.region_size != 224) what["region_size"] = config.region_size;
  what["precision"] = options.run.precision;
  what["mode"] = options.mode;
  if (graph) what["graph"] = true;
  nlohmann::ordered_json measured = {{"ms", ms}};
  measured[images ? "images_per_s" : "mpx_per_s"] = images ? images_per_s : mpx_per_s;
  measured["gexp_per_s"] = gexp_per_s;
  measured["peak_gb"] = peak_gb;
  std::string floor;
  if (!ctx->device().is_cpu()) {
    const double share = exps / kExpsPerSecond / (1e-3 * ms);
    measured["floor_share"] = share;
    floor = fmt::format(", {:.1f} % of the floor", 100.0 * share);
  }
  report.add(what, measured,
             fmt::format("{} {} {}{}, batch {} of {} x {}, {}: {:.2f} ms, {:.1f} images/s, {:.2f} Mpixel/s, {:.1f} "
                         "Gexp/s{}, peak {:.2f} GB",
                         options.model, options.mode, options.run.precision, graph ? " as a graph" : "", batch, size,
                         size, ctx->device().str(), ms, images_per_s, mpx_per_s, gexp_per_s, floor, peak_gb));
  return report.finish();
}

}  // namespace pm::app
