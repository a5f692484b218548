#include <cmath>

#include "tests/support/test.h"

namespace pm::test {
namespace {

// sum(weights * fn(inputs)), without recording.
double contracted(const GradFn& fn, const std::vector<Tensor>& inputs, const std::vector<double>& weights) {
  NoGrad no_grad(cpu());
  std::vector<Variable> variables;
  for (const Tensor& input : inputs) variables.emplace_back(input);
  const std::vector<double> out = fn(cpu(), variables).value().to_host<double>();
  double sum = 0.0;
  for (size_t i = 0; i < out.size(); ++i) sum += weights[i] * out[i];
  return sum;
}

// Derivative of the contraction along `direction` in input `index`, by central differences.
double numeric(const GradFn& fn, std::vector<Tensor> inputs, size_t index, const std::vector<double>& direction,
               const std::vector<double>& weights, double step) {
  const std::vector<double> centre = inputs[index].to_host<double>();
  const auto at = [&](double offset) {
    std::vector<double> moved = centre;
    for (size_t i = 0; i < moved.size(); ++i) moved[i] += offset * direction[i];
    inputs[index] = Tensor::from_host(cpu(), inputs[index].shape(), moved);
    return contracted(fn, inputs, weights);
  };
  return (at(step) - at(-step)) / (2.0 * step);
}

std::vector<double> unit_vector(size_t size, size_t axis) {
  std::vector<double> vector(size, 0.0);
  vector[axis] = 1.0;
  return vector;
}

}  // namespace

void check_gradient(const GradFn& fn, const std::vector<Tensor>& inputs, const GradcheckOptions& options) {
  std::vector<Variable> leaves;
  for (const Tensor& input : inputs) leaves.emplace_back(input, true);
  const Variable out = fn(cpu(), leaves);
  const Tensor weights = normal(options.seed, out.shape());
  backward(cpu(), out, weights);
  const std::vector<double> host_weights = weights.to_host<double>();

  for (size_t index = 0; index < inputs.size(); ++index) {
    const size_t size = static_cast<size_t>(inputs[index].numel());
    if (size == 0) continue;
    INFO("gradient of input " << index << " of shape " << inputs[index].shape().str());
    REQUIRE(leaves[index].grad().defined());
    REQUIRE(leaves[index].grad().shape() == inputs[index].shape());
    const std::vector<double> analytic = leaves[index].grad().to_host<double>();
    const bool full = static_cast<int64_t>(size) <= options.full_limit;
    double difference = 0.0, reference = 0.0;
    for (size_t k = 0; k < (full ? size : static_cast<size_t>(options.projections)); ++k) {
      const std::vector<double> direction =
          full ? unit_vector(size, k) : normal(options.seed + 1 + k, {inputs[index].numel()}).to_host<double>();
      double expected = 0.0;
      for (size_t i = 0; i < size; ++i) expected += analytic[i] * direction[i];
      const double actual = numeric(fn, inputs, index, direction, host_weights, options.step);
      difference += (actual - expected) * (actual - expected);
      reference += actual * actual;
    }
    const double error = std::sqrt(difference) / std::max(std::sqrt(reference), 1e-3);
    INFO("relative error " << error << ", allowed " << options.tolerance);
    CHECK_FALSE(!(error <= options.tolerance));
  }
}

void check_gradient(const GradFn& fn, const std::vector<Shape>& shapes, const GradcheckOptions& options) {
  std::vector<Tensor> inputs;
  for (size_t i = 0; i < shapes.size(); ++i) inputs.push_back(normal(options.seed + 100 + i, shapes[i]));
  check_gradient(fn, inputs, options);
}

}  // namespace pm::test
