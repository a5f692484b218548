#include "apps/guarded_gradients.h"

#include <algorithm>
#include <cmath>

#include "engine/core/check.h"
#include "engine/ops/elementwise/scaled_add.h"
#include "engine/ops/optim/global_norm.h"

namespace pm::app {
namespace {

template <typename T>
bool finite_values(const Tensor& tensor) {
  const std::vector<T> values = tensor.to_host<T>();
  return std::all_of(values.begin(), values.end(), [](T value) {
    if constexpr (std::is_same_v<T, bfloat16>)
      return std::isfinite(static_cast<float>(value));
    else
      return std::isfinite(value);
  });
}

bool all_finite(const Tensor& tensor) {
  switch (tensor.dtype()) {
    case DType::f32:
      return finite_values<float>(tensor);
    case DType::f64:
      return finite_values<double>(tensor);
    case DType::bf16:
      return finite_values<bfloat16>(tensor);
    default:
      return true;
  }
}

bool finite_norm(Context& ctx, const std::vector<Tensor>& tensors) {
  return tensors.empty() || all_finite(ops::global_norm(ctx, tensors));
}

}  // namespace

std::vector<Tensor> take_gradients(PixelMamba& model) {
  std::vector<Tensor> gradients;
  for (Parameter& parameter : model.parameters()) {
    gradients.push_back(parameter.value.grad());
    parameter.value.clear_grad();
  }
  return gradients;
}

void put_gradients(PixelMamba& model, const std::vector<Tensor>& gradients) {
  for (size_t i = 0; i < gradients.size(); ++i) {
    Variable& value = model.parameters()[i].value;
    gradients[i].defined() ? value.set_grad(gradients[i]) : value.clear_grad();
  }
}

std::string accumulate_if_finite(Context& ctx, PixelMamba& model, const std::vector<Tensor>& accumulated) {
  std::vector<Tensor> sums, defined;
  for (size_t i = 0; i < accumulated.size(); ++i) {
    const Tensor& grad = model.parameters()[i].value.grad();
    if (!accumulated[i].defined() || !grad.defined()) {
      sums.push_back(grad.defined() ? grad : accumulated[i]);
    } else {
      sums.push_back(ops::scaled_add(ctx, accumulated[i], 1.0, grad, 1.0));
    }
    if (sums.back().defined()) defined.push_back(sums.back());
  }
  if (finite_norm(ctx, defined)) {
    put_gradients(model, sums);
    return "";
  }
  std::string name = "all parameters together (each is finite, their norm is not)";
  for (size_t i = sums.size(); i-- > 0;) {  // from the head to the pixels, as backward goes
    if (!sums[i].defined() || finite_norm(ctx, {sums[i]})) continue;
    name = model.parameters()[i].name;
    break;
  }
  put_gradients(model, accumulated);
  return name;
}

std::string locate_not_finite(Context& ctx, const PixelMamba& model, const Tensor& image, double drop_path,
                              RngState rng) {
  for (const Parameter& parameter : model.parameters()) {
    if (!all_finite(parameter.value.value())) return "the weight " + parameter.name;
  }
  const RngState after = ctx.rng().state();
  ctx.rng().set_state(rng);
  std::string place;
  ForwardOptions options;
  options.drop_path = drop_path;
  options.observe = [&](int64_t layer, const Tensor& tokens) {
    if (place.empty() && !all_finite(tokens))
      place = fmt::format("layer {} of {}", layer + 1, model.config().n_layers());
  };
  const NoGrad no_grad(ctx);
  model.forward(ctx, Variable(image), options);
  ctx.rng().set_state(after);
  return place.empty() ? "the head or the loss" : place;
}

}  // namespace pm::app
