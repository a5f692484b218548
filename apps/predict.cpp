#include "apps/predict.h"

#include <algorithm>
#include <cmath>

#include "engine/core/check.h"

namespace pm::app {
namespace {

std::vector<double> softmax(const std::vector<double>& logits) {
  const double top = *std::max_element(logits.begin(), logits.end());
  std::vector<double> result;
  double sum = 0.0;
  for (const double logit : logits) sum += result.emplace_back(std::exp(logit - top));
  for (double& p : result) p /= sum;
  return result;
}

}  // namespace

std::vector<double> host_values(const Variable& variable) {
  if (!variable.defined()) return {};
  if (variable.value().dtype() == DType::f64) return variable.value().to_host<double>();
  const std::vector<float> values = variable.value().to_host<float>();
  return {values.begin(), values.end()};
}

io::SlideImage read_slide_row(const io::SlideRow& row, const ReadOptions& options) {
  io::SlideOptions slide;
  slide.mpp = options.mpp;
  slide.slide_mpp = row.mpp ? row.mpp : options.slide_mpp;
  return io::read_slide(row.path, slide);
}

Tensor image_tensor(Context& ctx, const io::Image& image) {
  return Tensor::from_host(ctx, {1, image.height, image.width, 3}, image.rgb);
}

Prediction prediction_of(const ModelConfig& config, const ForwardResult& result) {
  Prediction prediction;
  prediction.regions = result.regions;
  prediction.regions_left = result.regions_left;
  prediction.embedding = host_values(result.embedding);
  prediction.logits = host_values(result.logits);
  if (config.head == Head::classification) prediction.probabilities = softmax(prediction.logits);
  if (config.head == Head::survival) {
    double survival = 1.0;
    for (const double logit : prediction.logits) {
      const double hazard = 1.0 / (1.0 + std::exp(-logit));
      prediction.probabilities.push_back(hazard);
      survival *= 1.0 - hazard;
      prediction.risk -= survival;
    }
  }
  return prediction;
}

Prediction predict(Context& ctx, const PixelMamba& model, const Tensor& image) {
  const NoGrad no_grad(ctx);
  Prediction prediction = prediction_of(model.config(), model.forward(ctx, Variable(image)));
  for (const double value : prediction.embedding) {
    PM_CHECK(std::isfinite(value), Error, "the embedding is not finite: the model's weights are unusable");
  }
  return prediction;
}

int64_t best_class(const Prediction& prediction) {
  const auto& p = prediction.probabilities;
  return std::max_element(p.begin(), p.end()) - p.begin();
}

}  // namespace pm::app
