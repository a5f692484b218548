// The optimiser step that trainings take, and the whole step on a batch of images that `pretrain` takes and `bench` measures.
#pragma once
#include <optional>
#include <vector>

#include "engine/optim/adamw.h"
#include "layers/model/pixel_mamba.h"

namespace pm::app {

// AdamW over the model's parameters in two groups: matrices with weight decay, everything else without.
AdamW make_adamw(Context& ctx, const PixelMamba& model, double weight_decay);

// The parameters by name, sharing their memory: what a weight average follows.
std::vector<NamedTensor> values_of(const PixelMamba& model);

struct StepOptions {
  std::optional<double> lr =
      1e-3;                 // none: what the optimiser was last told, so that a captured step follows a schedule
  double grad_scale = 1.0;  // gradients are multiplied by this first: 1 / number of accumulated losses
  double clip = 0.0;        // largest gradient norm; 0: no clipping
};

// Clips, steps, clears the gradients: five launches on a GPU. Returns the norm before clipping as a tensor of one value: nothing
// here waits for the device.
Tensor apply_gradients(Context& ctx, PixelMamba& model, AdamW& optimiser, const StepOptions& options);

struct ClassificationStep {
  double label_smoothing = 0.1;
  double clip = 1.0;  // largest gradient norm; 0: no clipping
  ForwardOptions forward;
};

struct StepResult {
  Tensor loss, grad_norm;  // (1) each, on the device; the norm is that before clipping
};

// Forward, backward, clipping and AdamW at the rate that the optimiser was last told. targets: (batch, num_classes). Never waits
// for the device, and can be captured when options.forward draws nothing.
StepResult classification_step(Context& ctx, PixelMamba& model, AdamW& optimiser, const Variable& image,
                               const Tensor& targets, const ClassificationStep& options = {});

// The only element of a tensor. Waits for the device.
double host_value(const Tensor& tensor);

}  // namespace pm::app
