// A captured training step repeats exactly what the same calls do one by one.
#include "autograd/ops/cross_entropy.h"
#include "engine/ops/backends.h"
#include "engine/ops/loss/cross_entropy.h"
#include "engine/optim/adamw.h"
#include "layers/model/pixel_mamba.h"
#include "tests/support/test.h"

namespace pm::test {
namespace {

// Four layers on 8 x 8 regions, with fusion and both kinds of expansion.
ModelConfig small_config() {
  ModelConfig config;
  config.layers = {
      {3, Expansion::horizontal_cat}, {6, Expansion::vertical_cat}, {12, Expansion::horizontal_avg}, {12, {}}};
  config.region_size = 8;
  config.num_classes = 5;
  config.head = Head::classification;
  return config;
}

std::vector<uint8_t> pixels_of(uint64_t seed, int64_t count) {
  std::vector<uint8_t> pixels;
  for (int64_t i = 0; i < count; ++i) pixels.push_back(static_cast<uint8_t>(256.0 * uniform_at({seed, 0}, i)));
  return pixels;
}

// Everything one training step reads and writes.
struct Training {
  Context& ctx;
  PixelMamba model;
  AdamW optimiser;
  Tensor image;  // (2, 24, 16, 3): six regions
  Tensor targets, loss, norm;

  Training(Context& c, DType activation)
      : ctx(c),
        model(c, small_config(), activation, 7),
        optimiser(c, groups(model)),
        image(Tensor::zeros(c, {2, 24, 16, 3}, DType::u8)),
        targets(ops::one_hot(c, {1, 3}, 5, param_dtype(activation))) {}

  static std::vector<ParameterGroup> groups(const PixelMamba& model) {
    ParameterGroup group;
    for (const Parameter& parameter : model.parameters())
      group.parameters.push_back({parameter.name, parameter.value.value()});
    return {group};
  }

  void step() {
    const Variable value = cross_entropy(ctx, model.forward(ctx, Variable(image)).logits, targets, 0.1);
    backward(ctx, value);
    for (size_t i = 0; i < model.parameters().size(); ++i) {
      Parameter& parameter = model.parameters()[i];
      optimiser.parameters()[i].grad = parameter.value.grad();
      parameter.value.clear_grad();
    }
    norm = optimiser.step(ctx, {0.5, 1.0});
    loss = value.value();
  }

  // What changes from step to step.
  void prepare(int step) {
    image.copy_from_host(pixels_of(static_cast<uint64_t>(step), image.numel()).data());
    optimiser.set_learning_rate(ctx, 0.01 / static_cast<double>(step + 1));
  }
};

// Losses and norms of five steps, then all weights.
std::vector<Tensor> results_of(Context& ctx, DType activation, bool captured) {
  Training training(ctx, activation);
  std::vector<Tensor> results;
  training.prepare(0);
  training.step();
  std::unique_ptr<CapturedWork> work;
  if (captured) work = ctx.backend().capture([&] { training.step(); });
  for (int step = 1; step < 5; ++step) {
    training.prepare(step);
    // Memory of others must not be touched by a replay.
    const Tensor bystander = Tensor::zeros(ctx, {100'000}, DType::f32);
    captured ? work->replay() : training.step();
    for (const Tensor& value : {training.loss, training.norm, bystander}) results.push_back(value.copy_to(ctx));
  }
  CHECK(training.optimiser.steps() == 5);
  work.reset();
  for (const OptimParameter& parameter : training.optimiser.parameters()) results.push_back(parameter.value);
  return results;
}

void check_captured(Context& ctx, DType activation) {
  const std::vector<Tensor> plain = results_of(ctx, activation, false), captured = results_of(ctx, activation, true);
  REQUIRE(plain.size() == captured.size());
  for (size_t i = 0; i < plain.size(); ++i) check_same_bits(captured[i], plain[i], std::to_string(i));
  CHECK(relative_error(plain[3], plain[0]) > 1e-6);  // the steps do differ
  CHECK(relative_error(plain[2], Tensor::zeros(cpu(), {100'000}, DType::f64)) == 0.0);
}

}  // namespace

TEST_CASE("captured training steps give the same bits as plain ones", "[cuda][cublas]") {
  Context ctx(make_backend(Device::cuda()), 1);
  const auto activation = GENERATE(DType::f32, DType::bf16);
  const int64_t before = ctx.backend().memory().allocations;
  check_captured(ctx, activation);
  CHECK(ctx.backend().memory().allocations == before);
  CHECK(ctx.backend().memory().current_bytes == 0);
}

TEST_CASE("a capture refuses what cannot be repeated and leaves the device usable", "[cuda]") {
  Context ctx(make_backend(Device::cuda()), 1);
  const Tensor outside = Tensor::zeros(ctx, {4}, DType::f32);
  CHECK_THROWS_WITH(ctx.backend().capture([&] { outside.to_host<float>(); }), ContainsSubstring("being captured"));
  CHECK_THROWS_WITH(ctx.backend().capture([&] { ctx.synchronize(); }), ContainsSubstring("being captured"));
  CHECK_THROWS_AS(ctx.backend().capture([&] { Tensor::from_host<float>(ctx, {1}, {1.0f}); }), Error);
  CHECK(outside.to_host<float>() == std::vector<float>(4, 0.0f));
  CHECK(ctx.backend().memory().current_bytes == 16);
}

TEST_CASE("tensors of a capture may outlive it", "[cuda]") {
  Context ctx(make_backend(Device::cuda()), 1);
  {
    Tensor ones = Tensor::from_host(ctx, {1'000}, std::vector<float>(1'000, 1.0f)), kept, freed = ones.copy_to(ctx);
    auto work = ctx.backend().capture([&] {
      freed = Tensor();  // memory from outside, freed inside
      const Tensor passing = ones.copy_to(ctx);
      kept = passing.copy_to(ctx);
    });
    work->replay();
    CHECK(kept.to_host<float>() == std::vector<float>(1'000, 1.0f));
    ones.fill_zero();
    work->replay();
    work.reset();
    CHECK(kept.to_host<float>() == std::vector<float>(1'000, 0.0f));
  }
  CHECK(ctx.backend().memory().allocations == 0);
  CHECK(ctx.backend().memory().current_bytes == 0);
}

TEST_CASE("captured training steps give the same bits as plain ones on the cpu", "[cpu]") {
  check_captured(cpu(), DType::f64);
}

TEST_CASE("captured work runs at each replay, not before", "[cpu]") {
  int runs = 0;
  const auto work = cpu().backend().capture([&] { ++runs; });
  CHECK(runs == 0);
  work->replay();
  work->replay();
  CHECK(runs == 2);
}

}  // namespace pm::test
