// The checks of tests/support must catch the bugs they are there for: each test here plants one.
#include <cmath>
#include <limits>

#include "autograd/core/variable.h"
#include "engine/ops/backends.h"
#include "engine/ops/elementwise/scaled_add.h"
#include "tests/support/checked_backend.h"
#include "tests/support/test.h"

namespace pm::test {
namespace {

std::shared_ptr<CheckedBackend> checked_cpu() { return std::make_shared<CheckedBackend>(make_backend(Device::cpu())); }

// An operator that doubles all elements but the last.
Tensor forgets_the_last(Context& ctx, const Tensor& x) {
  Tensor out = Tensor::empty(ctx, x.shape(), x.dtype());
  for (int64_t i = 0; i + 1 < x.numel(); ++i) out.data<double>()[i] = 2.0 * x.data<double>()[i];
  return out;
}

// Writes one byte `distance` bytes from the first of an allocation of `bytes`, then frees it.
int64_t violations_after_write(size_t bytes, int64_t distance) {
  const auto backend = checked_cpu();
  auto* pointer = static_cast<uint8_t*>(backend->allocate(bytes));
  pointer[distance] = 1;
  backend->deallocate(pointer, bytes);
  return backend->violations();
}

// Its gradient is wrong by a factor.
Variable wrong_gradient(Context& ctx, const Variable& x) {
  return record(ctx, "wrong", ops::scale(ctx, x.value(), 3.0), {x},
                [](Context& c, const Tensor& dout, GradSink& grads) { grads.add(0, ops::scale(c, dout, 3.0001)); });
}

}  // namespace

TEST_CASE("an unwritten output element is found", "[cpu]") {
  const Tensor x = normal(1, {5});
  const Tensor out = forgets_the_last(cpu(), x);
  CHECK(std::isnan(out.to_host<double>()[4]));
  CHECK(std::isinf(relative_error(out, ops::scale(cpu(), x, 2.0))));
}

TEST_CASE("an unwritten output element fails check_close", "[cpu][!shouldfail]") {
  const Tensor x = normal(1, {5});
  check_close(forgets_the_last(cpu(), x), ops::scale(cpu(), x, 2.0), 1e30);
}

TEST_CASE("fresh memory is NaN in every float type", "[cpu]") {
  CHECK(std::isnan(Tensor::empty(cpu(), {2}, DType::f32).to_host<float>()[1]));
  CHECK(std::isnan(Tensor::empty(cpu(), {2}, DType::f64).to_host<double>()[1]));
  CHECK(std::isnan(static_cast<float>(Tensor::empty(cpu(), {2}, DType::bf16).to_host<bfloat16>()[1])));
  CHECK(Tensor::empty(cpu(), {2}, DType::i64).to_host<int64_t>()[1] == -1);
}

TEST_CASE("fresh GPU memory is NaN", "[cuda][poison]") {
  CHECK(std::isnan(Tensor::empty(cuda(), {2}, DType::f32).to_host<float>()[1]));
  CHECK(std::isnan(static_cast<float>(Tensor::empty(cuda(), {2}, DType::bf16).to_host<bfloat16>()[1])));
}

TEST_CASE("a write outside an allocation is found", "[cpu]") {
  CHECK(violations_after_write(40, 0) == 0);
  CHECK(violations_after_write(40, 39) == 0);
  CHECK(violations_after_write(40, 40) == 1);
  CHECK(violations_after_write(40, -1) == 1);
  CHECK(violations_after_write(40, -256) == 1);
  CHECK(violations_after_write(40, 40 + 255) == 1);
}

TEST_CASE("a write past the end of a GPU tensor is found", "[cuda]") {
  const auto backend = std::make_shared<CheckedBackend>(make_backend(Device::cuda()));
  for (const int64_t excess : {0, 1}) {
    void* pointer = backend->allocate(40);
    backend->fill_bytes(pointer, 0, static_cast<size_t>(40 + excess));
    backend->deallocate(pointer, 40);
    CHECK(backend->violations() == excess);
  }
}

TEST_CASE("comparison sees NaN, infinity and wrong values", "[cpu]") {
  const Tensor good = Tensor::from_host<double>(cpu(), {2}, {1.0, 2.0});
  const auto with_second = [](double value) { return Tensor::from_host<double>(cpu(), {2}, {1.0, value}); };
  CHECK(relative_error(good, good) == 0.0);
  CHECK(std::isinf(relative_error(with_second(std::nan("")), good)));
  CHECK(std::isinf(relative_error(with_second(std::numeric_limits<double>::infinity()), good)));
  CHECK(std::isinf(relative_error(good, with_second(std::nan("")))));
  CHECK(std::abs(relative_error(with_second(2.1), good) - 0.1 / std::sqrt(5.0)) < 1e-12);
  CHECK(relative_error(good, Tensor::zeros(cpu(), {2}, DType::f64)) == std::sqrt(5.0));
}

TEST_CASE("a wrong shape fails check_close", "[cpu][!shouldfail]") {
  check_close(normal(1, {2, 3}), normal(1, {3, 2}), 1e30);
}

TEST_CASE("one bit fails check_same_bits", "[cpu][!shouldfail]") {
  check_same_bits(Tensor::from_host<double>(cpu(), {1}, {0.0}), Tensor::from_host<double>(cpu(), {1}, {-0.0}));
}

TEST_CASE("a gradient wrong by a hundredth of a percent fails check_gradient", "[cpu][!shouldfail]") {
  check_gradient([](Context& c, const std::vector<Variable>& v) { return wrong_gradient(c, v[0]); },
                 std::vector<Shape>{{2, 3}});
}

}  // namespace pm::test
