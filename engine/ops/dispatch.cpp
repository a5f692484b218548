#include "engine/ops/dispatch.h"

namespace pm::ops {

void check_device(Context& ctx, const char* op, std::initializer_list<Named> tensors) {
  for (const auto& [name, tensor] : tensors) {
    PM_CHECK(tensor.defined(), Error, "{}: {} is undefined", op, name);
    PM_CHECK(tensor.device() == ctx.device(), DeviceError, "{}: {} must be on {}, it is on {}", op, name,
             ctx.device().str(), tensor.device().str());
  }
}

void check_dtype(const char* op, DType dtype, std::initializer_list<Named> tensors) {
  for (const auto& [name, tensor] : tensors) {
    PM_CHECK(tensor.dtype() == dtype, DTypeError, "{}: {} must be {}, it is {}", op, name, to_string(dtype),
             to_string(tensor.dtype()));
  }
}

void check_activation(Context& ctx, const char* op, const Named& tensor) {
  check_device(ctx, op, {tensor});
  const DType other = ctx.device().is_cpu() ? DType::f64 : DType::bf16;
  const DType actual = tensor.tensor.dtype();
  PM_CHECK(actual == DType::f32 || actual == other, DTypeError, "{}: {} must be f32 or {} on {}, it is {}", op,
           tensor.name, to_string(other), ctx.device().str(), to_string(actual));
}

void check_shape(const char* op, const Named& tensor, const Shape& expected) {
  PM_CHECK(tensor.tensor.shape() == expected, ShapeError, "{}: {} must have shape {}, it has {}", op, tensor.name,
           expected.str(), tensor.tensor.shape().str());
}

void check_rank(const char* op, const Named& tensor, int rank) {
  PM_CHECK(tensor.tensor.shape().rank() == rank, ShapeError, "{}: {} must have {} axes, it has shape {}", op,
           tensor.name, rank, tensor.tensor.shape().str());
}

}  // namespace pm::ops
