// Whether a training step over a slide fits the device, before the first one is tried.
#pragma once
#include <string>
#include <vector>

#include "engine/core/context.h"
#include "layers/model/config.h"

namespace pm::app {

struct SlideSize {
  std::string slide_id;
  int64_t width = 0, height = 0;  // pixels that the network sees
};

// Throws OutOfMemoryError naming the largest slide, what it needs, what the device has, and what would make it fit. `mpp` is the
// resolution of the sizes.
void require_memory(Context& ctx, const ModelConfig& config, DType activation, const std::vector<SlideSize>& slides,
                    double mpp);

// Likewise for a step on `batch` images of size x size pixels.
void require_batch_memory(Context& ctx, const ModelConfig& config, DType activation, int64_t batch, int64_t size);

}  // namespace pm::app
