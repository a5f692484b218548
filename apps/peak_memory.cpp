#include "apps/peak_memory.h"

#include "apps/train_step.h"
#include "engine/core/counting_backend.h"

namespace pm::app {
namespace {

ModelConfig with_head(ModelConfig config) {
  if (config.head == Head::none) {
    config.head = Head::classification;
    config.num_classes = 1;
  }
  return config;
}

}  // namespace

PeakMemory::PeakMemory(const ModelConfig& config, Device device, DType activation)
    : ctx_(std::make_shared<CountingBackend>(device)), model_(ctx_, with_head(config), activation, /*seed=*/0) {}

int64_t PeakMemory::inference(int64_t batch, int64_t height, int64_t width) {
  const Variable image(Tensor::empty(ctx_, {batch, height, width, 3}, DType::u8));
  ctx_.backend().reset_peak();
  const NoGrad no_grad(ctx_);
  model_.forward(ctx_, image);
  return ctx_.backend().memory().peak_bytes;
}

int64_t PeakMemory::training(int64_t batch, int64_t height, int64_t width) {
  const Variable image(Tensor::empty(ctx_, {batch, height, width, 3}, DType::u8));
  const Tensor targets = Tensor::empty(ctx_, {batch, model_.config().num_classes}, param_dtype(model_.activation()));
  AdamW optimiser = make_adamw(ctx_, model_, 0.05);
  ctx_.backend().reset_peak();
  classification_step(ctx_, model_, optimiser, image, targets);
  return ctx_.backend().memory().peak_bytes;
}

}  // namespace pm::app
