#include <cmath>
#include <limits>

#include "engine/core/tensor.h"
#include "engine/ops/backends.h"
#include "engine/ops/dispatch.h"
#include "tests/support/test.h"

namespace pm::test {
namespace {

// The message that fn throws as ErrorType.
template <typename ErrorType, typename Fn>
std::string message_of(Fn&& fn) {
  try {
    fn();
  } catch (const ErrorType& error) {
    return error.what();
  }
  return "nothing was thrown";
}

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

}  // namespace

TEST_CASE("shape knows its sizes", "[cpu]") {
  const Shape shape{2, 3, 5};
  CHECK(shape.rank() == 3);
  CHECK(shape[0] == 2);
  CHECK(shape[-1] == 5);
  CHECK(shape.numel() == 30);
  CHECK(shape.numel(1, 3) == 15);
  CHECK(shape.numel(1, 1) == 1);
  CHECK(Shape{}.numel() == 1);
  CHECK(Shape{4, 0, 7}.numel() == 0);
  CHECK(shape == Shape{2, 3, 5});
  CHECK_FALSE(shape == Shape{2, 3});
  CHECK_FALSE(shape == Shape{2, 3, 6});
  CHECK(shape.str() == "(2, 3, 5)");
  const std::vector<int> sizes{7, 8};
  CHECK(Shape(sizes.begin(), sizes.end()) == Shape{7, 8});
}

TEST_CASE("shape refuses what it cannot hold", "[cpu]") {
  CHECK_THROWS_AS(Shape({2, -1}), ShapeError);
  CHECK_THROWS_AS(Shape({1, 1, 1, 1, 1, 1, 1}), ShapeError);
  CHECK_THROWS_AS((Shape{2, 3}[2]), ShapeError);
  CHECK_THROWS_AS((Shape{2, 3}[-3]), ShapeError);
  const int64_t huge = int64_t{1} << 32;
  CHECK(contains(message_of<ShapeError>([&] { Shape({huge, huge}).numel(); }), "4294967296, 4294967296"));
  CHECK(Shape({huge, huge, 0}).numel() == 0);
}

TEST_CASE("a tensor refuses more bytes than 63 bits count", "[cpu]") {
  const int64_t elements = int64_t{1} << 61;
  CHECK_THROWS_AS(Tensor::empty(cpu(), {elements}, DType::f32), ShapeError);
  CHECK_THROWS_AS(Tensor::empty(cpu(), {elements, 16}, DType::u8), ShapeError);
}

TEST_CASE("running out of host memory names the sizes", "[cpu]") {
  const int64_t before = cpu().backend().memory().current_bytes;
  const std::string message =
      message_of<OutOfMemoryError>([] { Tensor::empty(cpu(), {int64_t{1} << 45}, DType::f32); });
  CHECK(contains(message, std::to_string((int64_t{1} << 47) + 512)));  // with the two guard bands of the tests
  CHECK(contains(message, std::to_string(cpu().backend().total_bytes())));
  CHECK(cpu().backend().memory().current_bytes == before);
}

TEST_CASE("running out of GPU memory leaves the device usable", "[cuda]") {
  const std::string message =
      message_of<OutOfMemoryError>([] { Tensor::empty(cuda(), {int64_t{1} << 39}, DType::f32); });
  CHECK(contains(message, "bytes requested"));
  CHECK(Tensor::zeros(cuda(), {3}, DType::f32).to_host<float>() == std::vector<float>(3, 0.0f));
}

TEST_CASE("values travel to a tensor and back in every type", "[cpu]") {
  const std::vector<float> f32{1.5f, -2.0f, 0.25f};
  CHECK(Tensor::from_host(cpu(), {3}, f32).to_host<float>() == f32);
  const std::vector<double> f64{1.5, -2.0, 1e-300};
  CHECK(Tensor::from_host(cpu(), {3, 1}, f64).to_host<double>() == f64);
  const std::vector<uint8_t> u8{0, 7, 255};
  CHECK(Tensor::from_host(cpu(), {1, 3}, u8).to_host<uint8_t>() == u8);
  const std::vector<int64_t> i64{-1, 0, int64_t{1} << 62};
  CHECK(Tensor::from_host(cpu(), {3}, i64).to_host<int64_t>() == i64);
  CHECK(Tensor::from_host(cpu(), {3}, u8).bytes() == 3);
  CHECK(Tensor::from_host(cpu(), {3}, i64).bytes() == 24);
}

TEST_CASE("values travel to the GPU and back", "[cuda]") {
  const std::vector<int64_t> i64{-1, 0, int64_t{1} << 62};
  const Tensor tensor = Tensor::from_host(cuda(), {3}, i64);
  CHECK(tensor.device() == Device::cuda());
  CHECK(tensor.copy_to(cpu()).to_host<int64_t>() == i64);
  CHECK(tensor.copy_to(cuda()).to_host<int64_t>() == i64);
  CHECK(tensor.copy_to(cpu()).copy_to(cuda()).rows(1, 3).to_host<int64_t>() ==
        std::vector<int64_t>{0, int64_t{1} << 62});
}

TEST_CASE("bfloat16 rounds to nearest even", "[cpu]") {
  CHECK(static_cast<float>(bfloat16(1.0f)) == 1.0f);
  CHECK(static_cast<float>(bfloat16(1.0f + 1.0f / 256.0f)) == 1.0f);  // a tie goes to the even neighbour
  CHECK(static_cast<float>(bfloat16(1.0f + 3.0f / 256.0f)) == 1.0f + 4.0f / 256.0f);  // and so does this one
  CHECK(static_cast<float>(bfloat16(1.0f + 1.1f / 256.0f)) == 1.0f + 2.0f / 256.0f);
  CHECK(std::isnan(static_cast<float>(bfloat16(std::numeric_limits<float>::quiet_NaN()))));
  CHECK(std::isinf(static_cast<float>(bfloat16(std::numeric_limits<float>::infinity()))));
  CHECK(std::isinf(static_cast<float>(bfloat16(std::numeric_limits<float>::max()))));
  const std::vector<bfloat16> values{bfloat16(2.0f), bfloat16(-0.5f)};
  CHECK(widen(Tensor::from_host(cpu(), {2}, values)).to_host<double>() == std::vector<double>{2.0, -0.5});
}

TEST_CASE("views share memory", "[cpu]") {
  Tensor tensor = Tensor::from_host<float>(cpu(), {3, 2}, {0, 1, 2, 3, 4, 5});
  CHECK(tensor.unique());
  Tensor middle = tensor.rows(1, 2);
  CHECK_FALSE(tensor.unique());
  CHECK(middle.shape() == Shape{1, 2});
  CHECK(middle.to_host<float>() == std::vector<float>{2, 3});
  middle.fill_zero();
  CHECK(tensor.to_host<float>() == std::vector<float>{0, 1, 0, 0, 4, 5});
  CHECK(tensor.reshape({6}).rows(4, 6).to_host<float>() == std::vector<float>{4, 5});
  CHECK(tensor.rows(1, 3).rows(1, 2).to_host<float>() == std::vector<float>{4, 5});
  CHECK(tensor.rows(3, 3).numel() == 0);
  CHECK(tensor.rows(3, 3).raw() == nullptr);
  const Tensor copy = tensor.rows(2, 3).copy_to(cpu());
  CHECK(copy.unique());
  tensor.fill_zero();
  CHECK(copy.to_host<float>() == std::vector<float>{4, 5});
}

TEST_CASE("a view keeps the memory alive", "[cpu]") {
  Tensor view;
  {
    const Tensor tensor = Tensor::from_host<float>(cpu(), {2}, {8, 9});
    view = tensor.rows(1, 2);
  }
  CHECK(view.to_host<float>() == std::vector<float>{9});
}

TEST_CASE("errors of tensors name what was expected and what was found", "[cpu]") {
  Tensor tensor = Tensor::zeros(cpu(), {2, 3}, DType::f32);
  const std::string view = message_of<ShapeError>([&] { tensor.reshape({7}); });
  CHECK((contains(view, "(2, 3)") && contains(view, "(7)")));
  const std::string rows = message_of<ShapeError>([&] { tensor.rows(1, 3); });
  CHECK((contains(rows, "[1, 3)") && contains(rows, "(2, 3)")));
  CHECK_THROWS_AS(tensor.rows(-1, 1), ShapeError);
  CHECK_THROWS_AS(tensor.rows(2, 1), ShapeError);
  const std::string type = message_of<DTypeError>([&] { tensor.data<double>(); });
  CHECK((contains(type, "f64") && contains(type, "f32")));
  CHECK_THROWS_AS(tensor.to_host<int64_t>(), DTypeError);
  const std::string count = message_of<ShapeError>([&] { Tensor::from_host<float>(cpu(), {2}, {1, 2, 3}); });
  CHECK((contains(count, "3") && contains(count, "(2)")));
  CHECK_THROWS_AS(Tensor().device(), Error);
}

TEST_CASE("argument checks of operators name the argument", "[cpu]") {
  const Tensor tensor = Tensor::zeros(cpu(), {2, 3}, DType::f32);
  const std::string shape = message_of<ShapeError>([&] { ops::check_shape("op", {"x", tensor}, {2, 4}); });
  CHECK((contains(shape, "op: x") && contains(shape, "(2, 4)") && contains(shape, "(2, 3)")));
  CHECK_THROWS_AS(ops::check_rank("op", {"x", tensor}, 3), ShapeError);
  const std::string type = message_of<DTypeError>([&] { ops::check_dtype("op", DType::i64, {{"x", tensor}}); });
  CHECK((contains(type, "i64") && contains(type, "f32")));
  CHECK_THROWS_AS(ops::check_activation(cpu(), "op", {"x", Tensor::zeros(cpu(), {1}, DType::bf16)}), DTypeError);
  CHECK_THROWS_AS(ops::check_activation(cpu(), "op", {"x", Tensor::zeros(cpu(), {1}, DType::u8)}), DTypeError);
  CHECK_THROWS_AS(ops::check_device(cpu(), "op", {{"x", Tensor()}}), Error);
}

TEST_CASE("a tensor of another device is refused", "[cuda]") {
  const Tensor tensor = Tensor::zeros(cpu(), {1}, DType::f32);
  const std::string device = message_of<DeviceError>([&] { ops::check_device(cuda(), "op", {{"x", tensor}}); });
  CHECK((contains(device, "cuda:0") && contains(device, "cpu")));
}

TEST_CASE("a device that is not there is refused", "[cpu]") {
  CHECK_THROWS_AS(make_backend(Device::cuda(cuda_device_count())), DeviceError);
}

TEST_CASE("memory is counted", "[cpu]") {
  Context ctx(make_backend(Device::cpu()));
  CHECK(ctx.backend().memory().current_bytes == 0);
  {
    const Tensor a = Tensor::empty(ctx, {100}, DType::f32);
    {
      const Tensor b = Tensor::empty(ctx, {10}, DType::i64), nothing = Tensor::empty(ctx, {0}, DType::f32);
      CHECK(ctx.backend().memory().current_bytes == 480);
      CHECK(ctx.backend().memory().allocations == 2);
      CHECK(nothing.raw() == nullptr);
    }
    CHECK(ctx.backend().memory().current_bytes == 400);
    CHECK(ctx.backend().memory().peak_bytes == 480);
    ctx.backend().reset_peak();
    CHECK(ctx.backend().memory().peak_bytes == 400);
    const Tensor view = a.rows(0, 50);
    CHECK(ctx.backend().memory().allocations == 1);
    CHECK(reinterpret_cast<uintptr_t>(a.raw()) % 256 == 0);
  }
  CHECK(ctx.backend().memory().current_bytes == 0);
  CHECK(ctx.backend().memory().allocations == 0);
}

TEST_CASE("GPU memory is counted", "[cuda]") {
  Context ctx(make_backend(Device::cuda()));
  const int64_t before = ctx.backend().memory().current_bytes;
  {
    const Tensor a = Tensor::empty(ctx, {100}, DType::f32);
    CHECK(ctx.backend().memory().current_bytes == before + 400);
  }
  CHECK(ctx.backend().memory().current_bytes == before);
  CHECK(ctx.backend().memory().peak_bytes == before + 400);
}

}  // namespace pm::test
