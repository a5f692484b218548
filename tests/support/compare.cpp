#include <cmath>
#include <cstring>
#include <limits>

#include "tests/support/test.h"

namespace pm::test {

double tolerance(DType dtype, int64_t reduced_terms) {
  switch (dtype) {
    case DType::f32:
      return reduced_terms > 100'000 ? 1e-4 : 1e-5;
    case DType::bf16:
      return 1e-2;
    default:
      return 1e-12;
  }
}

double relative_error(const Tensor& actual, const Tensor& expected) {
  const std::vector<double> a = widen(actual).to_host<double>(), e = widen(expected).to_host<double>();
  double difference = 0.0, reference = 0.0;
  for (size_t i = 0; i < e.size(); ++i) {
    difference += (a[i] - e[i]) * (a[i] - e[i]);
    reference += e[i] * e[i];
  }
  const double error = reference > 0.0 ? std::sqrt(difference / reference) : std::sqrt(difference);
  return std::isfinite(error) ? error : std::numeric_limits<double>::infinity();
}

void check_close(const Tensor& actual, const Tensor& expected, double tolerance, const std::string& what) {
  INFO(what << " actual " << actual.shape().str() << " expected " << expected.shape().str());
  REQUIRE(actual.shape() == expected.shape());
  const double error = relative_error(actual, expected);
  INFO("relative error " << error << ", allowed " << tolerance);
  CHECK_FALSE(!(error <= tolerance));
}

void check_same_bits(const Tensor& a, const Tensor& b, const std::string& what) {
  INFO(what);
  REQUIRE(a.shape() == b.shape());
  REQUIRE(a.dtype() == b.dtype());
  std::vector<std::byte> left(a.bytes()), right(b.bytes());
  a.copy_to_host(left.data());
  b.copy_to_host(right.data());
  CHECK((left.empty() || std::memcmp(left.data(), right.data(), left.size()) == 0));
}

}  // namespace pm::test
