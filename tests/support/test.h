// The only test header: Catch2 (2 or 3), the contexts tests run on, comparison, random tensors, gradient check.
//
// Tags: [cpu] runs everywhere; [cuda] needs a GPU and is reported as skipped without one; [data] needs the folder named by
// the environment variable PM_DATA; [browser] needs Chromium; [grad] gradient checks; [golden] stored references; [slow] over a few seconds.
#pragma once
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#if __has_include(<catch2/catch_all.hpp>)
#include <catch2/catch_all.hpp>
using Catch::Approx;
using Catch::Matchers::ContainsSubstring;
#else
#include <catch2/catch.hpp>
inline auto ContainsSubstring(const std::string& part) { return Catch::Contains(part); }
#endif

#include "autograd/core/variable.h"
#include "engine/core/tensor.h"

namespace pm::test {

// Contexts whose allocations are poisoned with NaN and surrounded by guard bands (see checked_backend.h). The listener in
// main.cpp fails a test that wrote outside an allocation. cuda() throws DeviceError without a GPU.
Context& cpu();
Context& cuda();
bool has_cuda();
// Folder of optional data, from PM_DATA. Only call it in tests tagged [data].
std::string data_dir();
// Path of Chromium or Chrome; "" where there is none. Only call it in tests tagged [browser].
std::string browser();
// tests/golden in the source tree.
std::string golden_dir();
// A fresh empty directory that lives as long as the object.
class TempDir {
 public:
  TempDir();
  ~TempDir();
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

// Standard normal (times scale) values as f64 on the CPU; rounded to `dtype` first and widened again, so that every device
// starts from the same numbers. Same seed, same values.
Tensor normal(uint64_t seed, const Shape& shape, double scale = 1.0, DType dtype = DType::f64);
Tensor uniform(uint64_t seed, const Shape& shape, double low, double high, DType dtype = DType::f64);
// The values of a CPU f64 tensor as `dtype` on the context's device.
Tensor on(Context& ctx, const Tensor& values, DType dtype);
// The values of any float tensor as CPU f64.
Tensor widen(const Tensor& tensor);

// Relative error in the 2-norm allowed between a device result and the CPU double reference.
// f32 1e-5 (1e-4 for sums over more than 1e5 terms), bf16 1e-2, f64 1e-12.
double tolerance(DType dtype, int64_t reduced_terms = 0);
// ||actual - expected|| / ||expected||; ||actual|| when the reference is zero; NaN and infinity anywhere give infinity.
double relative_error(const Tensor& actual, const Tensor& expected);
// Fails the test unless shapes agree and relative_error <= tolerance.
void check_close(const Tensor& actual, const Tensor& expected, double tolerance, const std::string& what = "");
// Fails the test unless both hold the same bits.
void check_same_bits(const Tensor& a, const Tensor& b, const std::string& what = "");

// Compares backward() of fn with central differences in CPU double. Every element of inputs with at most `full_limit`
// elements, random projections above. fn may return any shape; the check contracts it with fixed random weights.
using GradFn = std::function<Variable(Context&, const std::vector<Variable>&)>;
struct GradcheckOptions {
  double step = 1e-5;
  double tolerance = 1e-6;   // relative, norm of the gradient
  int64_t full_limit = 400;  // elements
  int projections = 6;
  uint64_t seed = 11;
};
void check_gradient(const GradFn& fn, const std::vector<Tensor>& inputs, const GradcheckOptions& options = {});
void check_gradient(const GradFn& fn, const std::vector<Shape>& shapes, const GradcheckOptions& options = {});

}  // namespace pm::test
