// verify: runs a golden folder (config, model, input, expected) and compares logits, embedding, loss and every gradient.
#include <cmath>
#include <cstdio>
#include <limits>
#include <nlohmann/json.hpp>

#include "apps/common.h"
#include "autograd/ops/cross_entropy.h"
#include "autograd/ops/survival_nll.h"
#include "engine/core/check.h"
#include "engine/ops/backends.h"
#include "engine/ops/loss/cross_entropy.h"
#include "io/checkpoint/safetensors.h"
#include "io/config/model_config.h"

namespace pm::app {
namespace {

struct VerifyOptions {
  RunOptions run;
  std::string folder;
};

// Largest relative error (2-norm, per tensor) that passes. bf16 keeps 8 bits of every activation: the golden models lose up
// to 0.14 in the gradient of a small bias that way.
struct Tolerance {
  double output, gradient;
};

Tolerance tolerance_of(const std::string& precision) {
  if (precision == "fp64") return {1e-6, 1e-6};
  if (precision == "bf16") return {5e-2, 0.25};
  if (precision == "tf32") return {5e-3, 1e-2};  // 10 bits of mantissa in the products; measured: 1.3e-3 and 2.4e-3
  return {1e-4, 1e-3};
}

std::vector<double> wide(const Tensor& tensor) {
  switch (tensor.dtype()) {
    case DType::f64:
      return tensor.to_host<double>();
    case DType::f32: {
      const auto values = tensor.to_host<float>();
      return {values.begin(), values.end()};
    }
    default:
      throw DTypeError(fmt::format("a float tensor is needed, got {}", to_string(tensor.dtype())));
  }
}

// ||actual - expected|| / ||expected||, absolute where the reference is zero; anything not finite is infinite.
double relative_error(const std::vector<double>& actual, const std::vector<double>& expected) {
  double difference = 0.0, reference = 0.0;
  for (size_t i = 0; i < expected.size(); ++i) {
    difference += (actual[i] - expected[i]) * (actual[i] - expected[i]);
    reference += expected[i] * expected[i];
  }
  const double error = reference > 0.0 ? std::sqrt(difference / reference) : std::sqrt(difference);
  return std::isfinite(error) ? error : std::numeric_limits<double>::infinity();
}

// Prints one line per tensor and remembers the worst.
class Report {
 public:
  explicit Report(bool json) : json_(json) {}

  void add(const std::string& name, double error, double tolerance) {
    const bool ok = error <= tolerance;  // false for NaN
    all_ok_ = all_ok_ && ok;
    const double ratio = error / tolerance;
    if (!(ratio <= worst_ratio_)) {
      worst_ratio_ = ratio;
      worst_ = name;
      worst_error_ = error;
    }
    if (json_) {
      std::printf(
          "%s\n",
          nlohmann::ordered_json{{"tensor", name}, {"rel_err", error}, {"tol", tolerance}, {"ok", ok}}.dump().c_str());
    } else if (!ok) {
      std::printf("FAIL  %-48s relative error %.3e, allowed %.1e\n", name.c_str(), error, tolerance);
    }
    ++count_;
  }
  void compare(const std::string& name, const Tensor& actual, const std::map<std::string, Tensor>& expected,
               double tolerance) {
    const auto found = expected.find(name);
    PM_CHECK(found != expected.end(), IoError, "expected.safetensors has no tensor '{}'", name);
    const bool fits = actual.defined() && actual.numel() == found->second.numel();
    add(name, fits ? relative_error(wide(actual), wide(found->second)) : std::numeric_limits<double>::infinity(),
        tolerance);
  }
  bool finish(const std::string& folder) const {
    if (json_) {
      std::printf(
          "%s\n",
          nlohmann::ordered_json{{"verify", all_ok_ ? "pass" : "fail"}, {"worst", worst_}, {"rel_err", worst_error_}}
              .dump()
              .c_str());
    } else {
      std::printf("%s  %s: %d tensors, worst %s with relative error %.3e\n", all_ok_ ? "pass" : "FAIL", folder.c_str(),
                  count_, worst_.c_str(), worst_error_);
    }
    return all_ok_;
  }

 private:
  bool json_;
  bool all_ok_ = true;
  int count_ = 0;
  double worst_ratio_ = -1.0, worst_error_ = 0.0;
  std::string worst_;
};

const Tensor& need(const std::map<std::string, Tensor>& tensors, const std::string& name, const std::string& file) {
  const auto found = tensors.find(name);
  PM_CHECK(found != tensors.end(), IoError, "{}: there is no tensor '{}'", file, name);
  return found->second;
}

Variable loss_of(Context& ctx, const PixelMamba& model, const Variable& logits,
                 const std::map<std::string, Tensor>& input, const std::string& file) {
  if (model.config().head == Head::survival) {
    return survival_nll(ctx, logits, need(input, "bin", file).copy_to(ctx), need(input, "censored", file).copy_to(ctx));
  }
  const std::vector<int64_t> labels = need(input, "label", file).to_host<int64_t>();
  return cross_entropy(ctx, logits, ops::one_hot(ctx, labels, model.config().num_classes, logits.value().dtype()), 0.0);
}

int run_verify(const VerifyOptions& options) {
  const auto ctx = make_context(options.run);
  Context host(make_backend(Device::cpu()));
  const std::string input_file = options.folder + "/input.safetensors";
  const auto input = io::read_safetensors(host, input_file);
  const auto expected = io::read_safetensors(host, options.folder + "/expected.safetensors");
  const PixelMamba model = load_model(*ctx, options.folder, options.run);

  const std::vector<double> pixels = wide(need(input, "image", input_file));
  const Shape& shape = need(input, "image", input_file).shape();
  const Tensor image = param_dtype(model.activation()) == DType::f64
                           ? Tensor::from_host(*ctx, shape, pixels)
                           : Tensor::from_host(*ctx, shape, std::vector<float>(pixels.begin(), pixels.end()));
  const Variable image_leaf(image, /*requires_grad=*/true);
  const ForwardResult result = model.forward(*ctx, image_leaf);
  const Variable loss = loss_of(*ctx, model, result.logits, input, input_file);
  backward(*ctx, loss);

  const Tolerance tolerance = tolerance_of(options.run.precision);
  Report report(options.run.json);
  report.compare("logits", result.logits.value(), expected, tolerance.output);
  report.compare("embedding", result.embedding.value(), expected, tolerance.output);
  report.compare("loss", loss.value(), expected, tolerance.output);
  const std::vector<int64_t> left = need(expected, "regions_left", "expected.safetensors").to_host<int64_t>();
  report.add("regions_left", std::abs(static_cast<double>(result.regions_left - left.at(0))), 0.0);
  report.compare("grad.image", image_leaf.grad(), expected, tolerance.gradient);
  for (const Parameter& parameter : model.parameters()) {
    report.compare("grad." + parameter.name, parameter.value.grad(), expected, tolerance.gradient);
  }
  return report.finish(options.folder) ? kDone : kInternal;
}

}  // namespace

void add_verify(CLI::App& app, Command& command) {
  auto options = std::make_shared<VerifyOptions>();
  CLI::App* verb = app.add_subcommand(
      "verify",
      "Run a golden folder and compare logits, embedding, loss and every gradient with its stored references");
  verb->add_option("FOLDER", options->folder,
                   "folder with config.json, model.safetensors, input.safetensors and expected.safetensors")
      ->required();
  add_run_options(*verb, options->run);
  verb->callback([options, &command] { command.exit_code = run_verify(*options); });
}

}  // namespace pm::app
