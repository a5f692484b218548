// What apps/peak_memory.h predicts against what passes really take.
#include "apps/peak_memory.h"
#include "apps/train_step.h"
#include "engine/core/counting_backend.h"
#include "engine/ops/backends.h"
#include "engine/ops/loss/cross_entropy.h"
#include "tests/support/test.h"

namespace pm::test {
namespace {

// The published widths up to 96 channels, with fusion, on 16 x 16 regions.
ModelConfig small_config(int64_t d_state) {
  ModelConfig config;
  config.layers = {{3, Expansion::horizontal_cat},
                   {6, Expansion::vertical_cat},
                   {12, Expansion::horizontal_cat},
                   {24, Expansion::vertical_cat},
                   {48, std::nullopt},
                   {48, Expansion::horizontal_cat},
                   {96, Expansion::horizontal_avg},
                   {96, std::nullopt}};
  config.region_size = 16;
  config.num_classes = 7;
  config.d_state = d_state;
  return config;
}

struct Input {
  int64_t batch, height, width;
};

// Peak of the second of two passes.
int64_t measured(Device device, const ModelConfig& config, DType activation, const Input& input, bool train) {
  Context ctx(make_backend(device));
  PixelMamba model(ctx, config, activation, 7);
  const Variable image(Tensor::zeros(ctx, {input.batch, input.height, input.width, 3}, DType::u8));
  Tensor targets;
  std::optional<AdamW> optimiser;
  if (train) {
    targets = ops::one_hot(ctx, std::vector<int64_t>(static_cast<size_t>(input.batch), 1), config.num_classes,
                           param_dtype(activation));
    optimiser.emplace(app::make_adamw(ctx, model, 0.05));
  }
  for (int run = 0; run < 2; ++run) {
    ctx.backend().reset_peak();
    if (train) {
      app::classification_step(ctx, model, *optimiser, image, targets);
    } else {
      const NoGrad no_grad(ctx);
      model.forward(ctx, image);
    }
  }
  return ctx.backend().memory().peak_bytes;
}

void check_prediction(Device device, const ModelConfig& config, DType activation, const Input& input, double allowed) {
  app::PeakMemory memory(config, device, activation);
  const auto check = [&](int64_t predicted, bool train) {
    const int64_t actual = measured(device, config, activation, input, train);
    CAPTURE(device.str(), to_string(activation), input.batch, input.height, train, predicted, actual);
    CHECK(static_cast<double>(predicted) == Approx(static_cast<double>(actual)).epsilon(allowed));
  };
  check(memory.inference(input.batch, input.height, input.width), false);
  check(memory.training(input.batch, input.height, input.width), true);
}

}  // namespace

TEST_CASE("memory on the cpu is what inspect predicts", "[cpu]") {
  const Device cpu_device = Device::cpu();
  const Input input = GENERATE(Input{1, 16, 16}, Input{1, 96, 80}, Input{3, 48, 48});
  check_prediction(cpu_device, named_config("nano", 5), DType::f32, input, 0.001);
  check_prediction(cpu_device, small_config(16), DType::f32, input, 0.001);
}

TEST_CASE("memory on a GPU is what inspect predicts", "[cuda][cublas]") {
  const auto activation = GENERATE(DType::f32, DType::bf16);
  const Input input = GENERATE(Input{1, 96, 80}, Input{1, 1024, 768}, Input{130, 48, 48});
  check_prediction(Device::cuda(), small_config(16), activation, input, 0.1);  // one operator per block
  check_prediction(Device::cuda(), small_config(8), activation, input, 0.1);   // composed blocks
  check_prediction(Device::cuda(), named_config("nano", 5), activation, input, 0.1);
}

TEST_CASE("a prediction grows with the input and needs no device", "[cpu]") {
  app::PeakMemory f32(named_config("6m", 4), Device::cuda(), DType::f32);
  app::PeakMemory bf16(named_config("6m", 4), Device::cuda(), DType::bf16);
  CHECK(bf16.training(1, 4480, 4480) < f32.training(1, 4480, 4480));
  CHECK(f32.inference(1, 4480, 4480) < f32.training(1, 8960, 8960));
  CHECK(f32.training(1, 1'000'000, 1'000'000) > 100 * f32.training(1, 44'800, 44'800));
  CHECK(f32.training(2, 224, 224) > f32.training(1, 224, 224));
  CHECK(f32.inference(1, 224, 224) == f32.inference(1, 224, 224));
}

// The limits of a training step on a GPU: 4480 x 4480 pixels in 4 GB of float32 and 2 GB of bfloat16. 1 % is left for sums on
// their way to the gradient of a weight, which a prediction leaves out.
TEST_CASE("a slide of 4480 x 4480 pixels trains within its memory", "[cpu]") {
  app::PeakMemory f32(named_config("6m", 4), Device::cuda(), DType::f32);
  app::PeakMemory bf16(named_config("6m", 4), Device::cuda(), DType::bf16);
  CHECK(f32.training(1, 4480, 4480) < 3'960'000'000);
  CHECK(bf16.training(1, 4480, 4480) < 1'980'000'000);
}

TEST_CASE("a model without a head is predicted too", "[cpu]") {
  app::PeakMemory memory(named_config("nano", 0), Device::cpu(), DType::f32);
  CHECK(memory.training(1, 64, 64) > memory.inference(1, 64, 64));
}

TEST_CASE("a backend that counts gives back what it took and has no values", "[cpu]") {
  Context ctx(std::make_shared<CountingBackend>(Device::cuda()));
  {
    const Tensor a = Tensor::zeros(ctx, {1000}, DType::f32), b = a.copy_to(ctx);
    CHECK(ctx.backend().memory().current_bytes == 8000);
    CHECK(ctx.backend().memory().allocations == 2);
    CHECK_THROWS_AS(a.to_host<float>(), Error);
  }
  CHECK(ctx.backend().memory().current_bytes == 0);
  CHECK(ctx.backend().memory().allocations == 0);
  CHECK(ctx.backend().memory().peak_bytes == 8000);
}

}  // namespace pm::test
