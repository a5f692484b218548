#include <algorithm>

#include "engine/optim/ema.h"
#include "tests/support/test.h"

namespace pm::test {

TEST_CASE("a weight average follows its recurrence", "[cpu]") {
  const std::vector<double> start = {1.0, -2.0, 3.0};
  Tensor value = Tensor::from_host(cpu(), {3}, start);
  WeightAverage average(cpu(), {{"w", value}}, 0.9);
  std::vector<double> expected = start;
  for (int n = 1; n <= 200; ++n) {
    const std::vector<double> now = {static_cast<double>(n), 0.5, -static_cast<double>(n * n)};
    value.copy_from_host(now.data());
    average.update(cpu());
    const double d = std::min(0.9, (1.0 + n) / (10.0 + n));
    for (size_t i = 0; i < 3; ++i) expected[i] = d * expected[i] + (1.0 - d) * now[i];
  }
  CHECK(average.updates() == 200);
  check_close(average.averages()[0].value, Tensor::from_host(cpu(), {3}, expected), 1e-13);
}

TEST_CASE("an average lends its weights to the model and takes them back bit for bit", "[cpu]") {
  Tensor a = on(cpu(), normal(1, {5, 3}), DType::f32), b = on(cpu(), normal(2, {2}), DType::f32);
  const Tensor a_before = a.copy_to(cpu()), b_before = b.copy_to(cpu());
  WeightAverage average(cpu(), {{"a", a}, {"b", b}}, 0.5);
  a.fill_zero();
  const Tensor a_now = a.copy_to(cpu());
  {
    const WithAverage averaged(cpu(), &average);
    check_same_bits(a, a_before);
    check_same_bits(b, b_before);
    check_same_bits(average.averages()[0].value, a_now);
  }
  check_same_bits(a, a_now);
  check_same_bits(average.averages()[0].value, a_before);
  const WithAverage nothing(cpu(), nullptr);
  check_same_bits(a, a_now);
}

TEST_CASE("a weight average needs a decay between 0 and 1", "[cpu]") {
  const Tensor value = Tensor::zeros(cpu(), {1}, DType::f32);
  for (const double decay : {0.0, 1.0, -1.0, 2.0})
    CHECK_THROWS_AS(WeightAverage(cpu(), {{"w", value}}, decay), ConfigError);
}

}  // namespace pm::test
