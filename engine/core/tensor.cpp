#include "engine/core/tensor.h"

#include <cstddef>

#include "engine/core/check.h"

namespace pm {

// Owns one allocation and keeps its backend alive.
class Tensor::Storage {
 public:
  Storage(std::shared_ptr<Backend> backend, size_t bytes)
      : backend_(std::move(backend)), bytes_(bytes), pointer_(static_cast<std::byte*>(backend_->allocate(bytes))) {}
  ~Storage() { backend_->deallocate(pointer_, bytes_); }
  Storage(const Storage&) = delete;
  Storage& operator=(const Storage&) = delete;

  Backend& backend() const { return *backend_; }
  std::byte* pointer() const { return pointer_; }

 private:
  std::shared_ptr<Backend> backend_;
  size_t bytes_;
  std::byte* pointer_;
};

Tensor Tensor::empty(Context& ctx, const Shape& shape, DType dtype) {
  Tensor tensor;
  tensor.shape_ = shape;
  tensor.dtype_ = dtype;
  int64_t bytes = 0;
  PM_CHECK(!__builtin_mul_overflow(shape.numel(), static_cast<int64_t>(size_of(dtype)), &bytes), ShapeError,
           "a tensor of shape {} has more than 2^63 bytes", shape.str());
  tensor.storage_ = std::make_shared<Storage>(ctx.shared_backend(), static_cast<size_t>(bytes));
  return tensor;
}

Tensor Tensor::zeros(Context& ctx, const Shape& shape, DType dtype) {
  Tensor tensor = empty(ctx, shape, dtype);
  tensor.fill_zero();
  return tensor;
}

Device Tensor::device() const {
  PM_CHECK(defined(), Error, "an undefined tensor has no device");
  return storage_->backend().device();
}

void* Tensor::raw() { return bytes() == 0 ? nullptr : storage_->pointer() + offset_bytes_; }
const void* Tensor::raw() const { return bytes() == 0 ? nullptr : storage_->pointer() + offset_bytes_; }

void Tensor::check_type(DType wanted) const {
  PM_CHECK(dtype_ == wanted, DTypeError, "expected a tensor of {}, got {}", to_string(wanted), to_string(dtype_));
}

void Tensor::check_count(const Shape& shape, size_t count) {
  PM_CHECK(shape.numel() == static_cast<int64_t>(count), ShapeError, "{} values do not fill shape {}", count,
           shape.str());
}

Tensor Tensor::reshape(const Shape& shape) const {
  PM_CHECK(shape.numel() == numel(), ShapeError, "cannot view shape {} as {}", shape_.str(), shape.str());
  Tensor view = *this;
  view.shape_ = shape;
  return view;
}

Tensor Tensor::rows(int64_t begin, int64_t end) const {
  PM_CHECK(shape_.rank() >= 1 && 0 <= begin && begin <= end && end <= shape_[0], ShapeError,
           "rows [{}, {}) are outside shape {}", begin, end, shape_.str());
  const int64_t row = shape_.numel(1, shape_.rank());
  Shape shape{end - begin};
  for (int axis = 1; axis < shape_.rank(); ++axis) shape.push_back(shape_[axis]);
  Tensor view = *this;
  view.shape_ = shape;
  view.offset_bytes_ += static_cast<size_t>(begin * row) * size_of(dtype_);
  return view;
}

void Tensor::copy_from_host(const void* values) {
  if (bytes() != 0) storage_->backend().copy_from_host(raw(), values, bytes());
}

void Tensor::fill_zero() {
  if (bytes() != 0) storage_->backend().fill_bytes(raw(), 0, bytes());
}

void Tensor::copy_to_host(void* values) const {
  if (bytes() != 0) storage_->backend().copy_to_host(values, raw(), bytes());
}

Tensor Tensor::copy_to(Context& ctx) const {
  Tensor copy = empty(ctx, shape_, dtype_);
  if (bytes() == 0) return copy;
  if (device() == ctx.device()) {
    ctx.backend().copy_within(copy.raw(), raw(), bytes());
  } else if (device().is_cpu()) {
    copy.copy_from_host(raw());
  } else if (ctx.device().is_cpu()) {
    copy_to_host(copy.raw());
  } else {
    std::vector<std::byte> staging(bytes());
    copy_to_host(staging.data());
    copy.copy_from_host(staging.data());
  }
  return copy;
}

}  // namespace pm
