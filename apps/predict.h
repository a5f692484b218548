// One slide through the network: what `infer` prints and `finetune` trains on.
#pragma once
#include <string>
#include <vector>

#include "io/data/slide_table.h"
#include "io/slide/slide.h"
#include "layers/model/pixel_mamba.h"

namespace pm::app {

struct ReadOptions {
  double mpp = 4.0;                 // micrometres per pixel that the network sees
  std::optional<double> slide_mpp;  // for slides that do not say theirs
};

// The slide's pixels at options.mpp. The table's mpp wins over --slide-mpp. Throws IoError.
io::SlideImage read_slide_row(const io::SlideRow& row, const ReadOptions& options);
// u8 (1, height, width, 3) on the context's device.
Tensor image_tensor(Context& ctx, const io::Image& image);

// All elements on the host; none of an undefined Variable. Waits for the device.
std::vector<double> host_values(const Variable& variable);

struct Prediction {
  std::vector<double> logits;
  std::vector<double> probabilities;  // classification: softmax; survival: hazard per time bin
  double risk = 0.0;                  // survival: minus the sum of the survival function
  std::vector<double> embedding;
  int64_t regions = 0, regions_left = 0;
};

// The host's view of a forward pass over one image.
Prediction prediction_of(const ModelConfig& config, const ForwardResult& result);
// Without recording gradients. Throws Error when the embedding is not finite.
Prediction predict(Context& ctx, const PixelMamba& model, const Tensor& image);
int64_t best_class(const Prediction& prediction);

}  // namespace pm::app
