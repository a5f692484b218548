// What a forward pass or a training step takes of memory, before it runs and without its device: the program's own pass
// (apps/train_step.h) on a backend that counts memory and computes nothing. Bytes of tensors and scratch memory at their peak, as
// `bench` reports them (peak_gb). A GPU holds some more beside them: its driver's context, 32 MiB for cuBLAS, kernels.
#pragma once
#include "engine/core/context.h"
#include "layers/model/pixel_mamba.h"

namespace pm::app {

class PeakMemory {
 public:
  // float32 stands for tf32 too. Throws ConfigError.
  PeakMemory(const ModelConfig& config, Device device, DType activation);

  // `batch` images of height x width pixels; weights and images included.
  int64_t inference(int64_t batch, int64_t height, int64_t width);
  // Forward, backward and AdamW: gradients and optimiser state included. A model without a head is given one.
  int64_t training(int64_t batch, int64_t height, int64_t width);

 private:
  Context ctx_;
  PixelMamba model_;
};

}  // namespace pm::app
