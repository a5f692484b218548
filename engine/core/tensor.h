// A contiguous array on one device. Copying a Tensor shares its memory; views are contiguous too.
// No fmt in this header: device code includes it.
#pragma once
#include <memory>
#include <vector>

#include "engine/core/context.h"
#include "engine/core/dtype.h"
#include "engine/core/error.h"
#include "engine/core/shape.h"

namespace pm {

class Tensor {
 public:
  Tensor() = default;                                                  // undefined: no memory, defined() is false
  static Tensor empty(Context& ctx, const Shape& shape, DType dtype);  // not initialised
  static Tensor zeros(Context& ctx, const Shape& shape, DType dtype);
  // Copies host values; the dtype is that of T.
  template <typename T>
  static Tensor from_host(Context& ctx, const Shape& shape, const T* values) {
    Tensor tensor = empty(ctx, shape, dtype_of<T>());
    tensor.copy_from_host(values);
    return tensor;
  }
  template <typename T>
  static Tensor from_host(Context& ctx, const Shape& shape, const std::vector<T>& values) {
    check_count(shape, values.size());
    return from_host(ctx, shape, values.data());
  }

  bool defined() const { return storage_ != nullptr; }
  // True when no other Tensor shares this memory.
  bool unique() const { return storage_.use_count() == 1; }
  const Shape& shape() const { return shape_; }
  int64_t size(int axis) const { return shape_[axis]; }
  int64_t numel() const { return shape_.numel(); }
  size_t bytes() const { return static_cast<size_t>(numel()) * size_of(dtype_); }
  DType dtype() const { return dtype_; }
  Device device() const;

  // Pointer to the first element; null for an empty tensor.
  void* raw();
  const void* raw() const;
  // Typed access. Throws DTypeError when T is not the element type.
  template <typename T>
  T* data() {
    check_type(dtype_of<T>());
    return static_cast<T*>(raw());
  }
  template <typename T>
  const T* data() const {
    check_type(dtype_of<T>());
    return static_cast<const T*>(raw());
  }

  // The same memory under another shape with as many elements.
  Tensor reshape(const Shape& shape) const;
  // Rows [begin, end) of the first axis: the same memory.
  Tensor rows(int64_t begin, int64_t end) const;

  void copy_from_host(const void* values);
  void fill_zero();
  // All elements on the host. Waits for the device. Throws DTypeError when T is not the element type.
  template <typename T>
  std::vector<T> to_host() const {
    check_type(dtype_of<T>());
    std::vector<T> values(static_cast<size_t>(numel()));
    copy_to_host(values.data());
    return values;
  }
  void copy_to_host(void* values) const;
  // A copy on the context's device (always a fresh one).
  Tensor copy_to(Context& ctx) const;

 private:
  class Storage;
  void check_type(DType wanted) const;
  static void check_count(const Shape& shape, size_t count);

  std::shared_ptr<Storage> storage_;
  size_t offset_bytes_ = 0;
  Shape shape_;
  DType dtype_ = DType::f32;
};

}  // namespace pm
