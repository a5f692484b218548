// verify: runs a golden folder (config, model, input, expected) and compares logits, embedding, loss and every gradient.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>

#include "apps/command_line.h"
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
    // How far towards its own tolerance; a tolerance of zero leaves nothing between exact and failed.
    const double ratio = tolerance > 0.0 ? error / tolerance : ok ? 0.0 : std::numeric_limits<double>::infinity();
    if (ratio > worst_ratio_) {
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
    compared_.insert(name);
    const bool scalars = actual.defined() && actual.numel() == 1 && found->second.numel() == 1;
    const bool fits = scalars || (actual.defined() && actual.shape() == found->second.shape());
    add(name, fits ? relative_error(wide(actual), wide(found->second)) : std::numeric_limits<double>::infinity(),
        tolerance);
  }
  // A stored gradient that nothing was compared with is a model that differs, not a pass.
  void require_all_compared(const std::map<std::string, Tensor>& expected) {
    for (const auto& [name, tensor] : expected) {
      if (name.starts_with("grad.") && !compared_.contains(name))
        add(name, std::numeric_limits<double>::infinity(), 0.0);
    }
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
  std::set<std::string> compared_;
};

const Tensor& need(const std::map<std::string, Tensor>& tensors, const std::string& name, const std::string& file) {
  const auto found = tensors.find(name);
  PM_CHECK(found != tensors.end(), IoError, "{}: there is no tensor '{}'", file, name);
  return found->second;
}

// The values of one of the inputs beside the image: one per image, each in [0, limit).
std::vector<int64_t> whole_numbers(const std::map<std::string, Tensor>& input, const std::string& name,
                                   const std::string& file, int64_t batch, int64_t limit) {
  const Tensor& tensor = need(input, name, file);
  PM_CHECK(tensor.dtype() == DType::i64 && tensor.numel() == batch, IoError,
           "{}: '{}' must hold one i64 per image, {} in all, got {} of shape {}", file, name, batch,
           to_string(tensor.dtype()), tensor.shape().str());
  std::vector<int64_t> values = tensor.to_host<int64_t>();
  for (const int64_t value : values) {
    PM_CHECK(value >= 0 && value < limit, IoError, "{}: '{}' must be 0..{}, got {}", file, name, limit - 1, value);
  }
  return values;
}

const Tensor& image_of(const std::map<std::string, Tensor>& input, const std::string& file) {
  const Tensor& image = need(input, "image", file);
  const Shape& shape = image.shape();
  const bool is_float = image.dtype() == DType::f32 || image.dtype() == DType::f64;
  PM_CHECK(is_float && shape.rank() == 4 && shape[1] == 3 && image.numel() > 0, IoError,
           "{}: 'image' must be float of shape (batch, 3, height, width), got {} of shape {}", file,
           to_string(image.dtype()), shape.str());
  return image;
}

Variable loss_of(Context& ctx, const PixelMamba& model, const Variable& logits,
                 const std::map<std::string, Tensor>& input, const std::string& file) {
  const int64_t batch = logits.value().shape()[0], classes = model.config().num_classes;
  if (model.config().head == Head::survival) {
    const std::vector<int64_t> bins = whole_numbers(input, "bin", file, batch, classes);
    const std::vector<int64_t> censored = whole_numbers(input, "censored", file, batch, 2);
    return survival_nll(ctx, logits, Tensor::from_host(ctx, {batch}, bins), Tensor::from_host(ctx, {batch}, censored));
  }
  const std::vector<int64_t> labels = whole_numbers(input, "label", file, batch, classes);
  return cross_entropy(ctx, logits, ops::one_hot(ctx, labels, classes, logits.value().dtype()), 0.0);
}

int run_verify(const VerifyOptions& options) {
  const auto ctx = make_context(options.run);
  for (const char* file : {"config.json", "model.safetensors", "input.safetensors", "expected.safetensors"}) {
    PM_CHECK(std::filesystem::exists(options.folder + "/" + file), IoError,
             "{}: is no golden folder: there is no {} in it", options.folder, file);
  }
  Context host(make_backend(Device::cpu()));
  const std::string input_file = options.folder + "/input.safetensors";
  const auto input = io::read_safetensors(host, input_file);
  const auto expected = io::read_safetensors(host, options.folder + "/expected.safetensors");
  const PixelMamba model = load_model(*ctx, options.folder, options.run);

  PM_CHECK(model.config().head != Head::none, IoError, "{}: the model has no head, so there is no loss to compare",
           options.folder);
  const Tensor& stored = image_of(input, input_file);
  const std::vector<double> pixels = wide(stored);
  const Shape& shape = stored.shape();
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
  const Tensor& left = need(expected, "regions_left", "expected.safetensors");
  PM_CHECK(left.dtype() == DType::i64 && left.numel() > 0, IoError,
           "expected.safetensors: 'regions_left' must be i64, got {}", to_string(left.dtype()));
  int64_t difference = 0;  // one number, or one per image
  for (const int64_t regions : left.to_host<int64_t>()) {
    difference = std::max(difference, std::abs(result.regions_left - regions));
  }
  report.add("regions_left", static_cast<double>(difference), 0.0);
  report.compare("grad.image", image_leaf.grad(), expected, tolerance.gradient);
  for (const Parameter& parameter : model.parameters()) {
    report.compare("grad." + parameter.name, parameter.value.grad(), expected, tolerance.gradient);
  }
  report.require_all_compared(expected);
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
