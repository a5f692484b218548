#include <unistd.h>

#include <cstdlib>
#include <filesystem>

#include "engine/core/check.h"
#include "tests/support/test.h"

namespace pm::test {
namespace {

double rounded(double value, DType dtype) {
  if (dtype == DType::f32) return static_cast<float>(value);
  if (dtype == DType::bf16) return static_cast<float>(bfloat16(static_cast<float>(value)));
  return value;
}

template <typename Draw>
Tensor draw_tensor(const Shape& shape, DType dtype, Draw&& draw) {
  std::vector<double> values(static_cast<size_t>(shape.numel()));
  for (size_t i = 0; i < values.size(); ++i) values[i] = rounded(draw(static_cast<int64_t>(i)), dtype);
  return Tensor::from_host(cpu(), shape, values);
}

}  // namespace

Tensor normal(uint64_t seed, const Shape& shape, double scale, DType dtype) {
  const RngState draw{seed, 0};
  return draw_tensor(shape, dtype, [&](int64_t i) { return scale * normal_at(draw, i); });
}

Tensor uniform(uint64_t seed, const Shape& shape, double low, double high, DType dtype) {
  const RngState draw{seed, 0};
  return draw_tensor(shape, dtype, [&](int64_t i) { return low + (high - low) * uniform_at(draw, i); });
}

Tensor on(Context& ctx, const Tensor& values, DType dtype) {
  const std::vector<double> source = values.to_host<double>();
  switch (dtype) {
    case DType::f64:
      return Tensor::from_host(ctx, values.shape(), source);
    case DType::f32:
      return Tensor::from_host(ctx, values.shape(), std::vector<float>(source.begin(), source.end()));
    case DType::bf16: {
      std::vector<bfloat16> narrow;
      for (const double value : source) narrow.emplace_back(static_cast<float>(value));
      return Tensor::from_host(ctx, values.shape(), narrow);
    }
    default:
      throw DTypeError("on(): a float dtype is needed");
  }
}

Tensor widen(const Tensor& tensor) {
  std::vector<double> wide;
  switch (tensor.dtype()) {
    case DType::f64:
      wide = tensor.to_host<double>();
      break;
    case DType::f32:
      for (const float value : tensor.to_host<float>()) wide.push_back(value);
      break;
    case DType::bf16:
      for (const bfloat16 value : tensor.to_host<bfloat16>()) wide.push_back(static_cast<float>(value));
      break;
    default:
      throw DTypeError("widen(): a float tensor is needed");
  }
  return Tensor::from_host(cpu(), tensor.shape(), wide);
}

TempDir::TempDir() {
  std::string pattern = (std::filesystem::temp_directory_path() / "pixel-mamba-test-XXXXXX").string();
  PM_CHECK(mkdtemp(pattern.data()) != nullptr, IoError, "cannot make a temporary folder {}", pattern);
  path_ = pattern;
}

TempDir::~TempDir() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

}  // namespace pm::test
