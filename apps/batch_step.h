// A training step on batches of images of one shape: copied to the device, then repeated as a captured graph where that helps.
#pragma once
#include <memory>
#include <vector>

#include "apps/train_step.h"
#include "io/data/image_loader.h"

namespace pm::app {

class BatchStep {
 public:
  struct Result {
    double loss = 0.0, grad_norm = 0.0;  // before clipping
  };

  // The model and the optimiser outlive it. `capture`: repeat the first step's launches on a GPU; no good with stochastic depth, whose
  // draws would be repeated too.
  BatchStep(Context& ctx, PixelMamba& model, AdamW& optimiser, int64_t batch, int64_t size,
            const ClassificationStep& options, bool capture);
  // One update of the weights at this rate. Waits for the device.
  Result run(const io::ImageBatch& images, double lr);

 private:
  Context& ctx_;
  PixelMamba& model_;
  AdamW& optimiser_;
  ClassificationStep options_;
  bool capture_;
  Variable image_;     // u8 (batch, size, size, 3), overwritten by every step
  Tensor targets_;     // (batch, classes), likewise
  StepResult result_;  // of the last step
  std::unique_ptr<CapturedWork> captured_;
  bool warm_ = false;  // a step has run
};

// Rows of targets: lambda at the label, the rest at the partner's. (batch, classes)
std::vector<double> mixed_targets(const io::ImageBatch& images, int64_t classes);

// What a model says about a batch without learning: sums over its real images.
struct BatchScore {
  int64_t images = 0, top1 = 0, top5 = 0;  // top5: the class is among the five highest scores
  double loss = 0.0;                       // cross entropy, summed
  BatchScore& operator+=(const BatchScore& other);
};
BatchScore score_batch(Context& ctx, const PixelMamba& model, const io::ImageBatch& images);

}  // namespace pm::app
