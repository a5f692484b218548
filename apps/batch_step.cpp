#include "apps/batch_step.h"

#include <algorithm>
#include <cmath>

#include "apps/predict.h"

namespace pm::app {
namespace {

// Of one row: cross entropy, and how many classes score higher than the label (of equal scores the lower class comes first).
std::pair<double, int64_t> judge(const double* scores, int64_t classes, int64_t label) {
  const double top = *std::max_element(scores, scores + classes);
  double sum = 0.0;
  int64_t above = 0;
  for (int64_t c = 0; c < classes; ++c) {
    sum += std::exp(scores[c] - top);
    above += scores[c] > scores[label] || (scores[c] == scores[label] && c < label) ? 1 : 0;
  }
  return {std::log(sum) + top - scores[label], above};
}

}  // namespace

std::vector<double> mixed_targets(const io::ImageBatch& images, int64_t classes) {
  std::vector<double> targets(images.labels.size() * static_cast<size_t>(classes));
  for (size_t i = 0; i < images.labels.size(); ++i) {
    double* row = targets.data() + i * static_cast<size_t>(classes);
    row[images.labels[i]] += images.lambda;
    row[images.partners[i]] += 1.0 - images.lambda;
  }
  return targets;
}

BatchStep::BatchStep(Context& ctx, PixelMamba& model, AdamW& optimiser, int64_t batch, int64_t size,
                     const ClassificationStep& options, bool capture)
    : ctx_(ctx),
      model_(model),
      optimiser_(optimiser),
      options_(options),
      capture_(capture && !ctx.device().is_cpu()),
      image_(Tensor::zeros(ctx, {batch, size, size, 3}, DType::u8)),
      targets_(Tensor::zeros(ctx, {batch, model.config().num_classes}, param_dtype(model.activation()))) {}

BatchStep::Result BatchStep::run(const io::ImageBatch& images, double lr) {
  Tensor pixels = image_.value();
  pixels.copy_from_host(images.rgb.data());
  const std::vector<double> targets = mixed_targets(images, model_.config().num_classes);
  if (targets_.dtype() == DType::f64) {
    targets_.copy_from_host(targets.data());
  } else {
    const std::vector<float> rounded(targets.begin(), targets.end());
    targets_.copy_from_host(rounded.data());
  }
  optimiser_.set_learning_rate(ctx_, lr);
  const auto step = [&] { result_ = classification_step(ctx_, model_, optimiser_, image_, targets_, options_); };
  if (capture_ && warm_ && captured_ == nullptr) captured_ = ctx_.backend().capture(step);
  if (captured_ != nullptr) {
    captured_->replay();
  } else {
    step();
  }
  warm_ = true;
  return {host_value(result_.loss), host_value(result_.grad_norm)};
}

BatchScore& BatchScore::operator+=(const BatchScore& other) {
  images += other.images;
  top1 += other.top1;
  top5 += other.top5;
  loss += other.loss;
  return *this;
}

BatchScore score_batch(Context& ctx, const PixelMamba& model, const io::ImageBatch& images) {
  const NoGrad no_grad(ctx);
  const Shape shape = {static_cast<int64_t>(images.labels.size()), images.size, images.size, 3};
  const Variable pixels(Tensor::from_host(ctx, shape, images.rgb));
  const std::vector<double> scores = host_values(model.forward(ctx, pixels).logits);
  const int64_t classes = model.config().num_classes;
  BatchScore score;
  for (int64_t i = 0; i < images.images; ++i) {
    const auto [loss, above] = judge(scores.data() + i * classes, classes, images.labels[static_cast<size_t>(i)]);
    ++score.images;
    score.loss += loss;
    score.top1 += above == 0 ? 1 : 0;
    score.top5 += above < 5 ? 1 : 0;
  }
  return score;
}

}  // namespace pm::app
