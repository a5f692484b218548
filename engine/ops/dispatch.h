// Argument checks and device dispatch, shared by engine/ops/**.cpp.
#pragma once
#include <initializer_list>

#include "engine/core/check.h"
#include "engine/core/tensor.h"

namespace pm::ops {

#ifdef PM_WITH_CUDA
inline constexpr bool kWithCuda = true;
#else
inline constexpr bool kWithCuda = false;
#endif

// Runs the CPU or the CUDA twin of an operator. Write the second as a generic lambda, `[&](auto stream) { cuda::op(args,
// stream); }`: its body is compiled only where CUDA is built in, so a CPU-only build links without stubs. Neither runs where
// memory is only counted.
template <typename CpuFn, typename CudaFn>
void dispatch_device(Context& ctx, const char* op, CpuFn&& cpu_fn, CudaFn&& cuda_fn) {
  if (ctx.backend().counts_only()) return;
  if (ctx.device().is_cpu()) return cpu_fn();
  if constexpr (kWithCuda) {
    cuda_fn(ctx.stream());
  } else {
    throw DeviceError(fmt::format("{}: {} needs a build with CUDA", op, ctx.device().str()));
  }
}

// Where memory is only counted: what the twin would take beside its outputs. bytes(is_cpu) is not called elsewhere. Operators
// whose scratch memory is small beside their tensors leave it out.
template <typename Fn>
void count_scratch(Context& ctx, Fn&& bytes) {
  if (ctx.backend().counts_only()) Tensor::empty(ctx, {bytes(ctx.device().is_cpu())}, DType::u8);
}

// A tensor argument with its name, for messages.
struct Named {
  const char* name;
  const Tensor& tensor;
};

// Each tensor must be defined and live on the context's device. Throws DeviceError.
void check_device(Context& ctx, const char* op, std::initializer_list<Named> tensors);
// Each tensor must have this dtype. Throws DTypeError.
void check_dtype(const char* op, DType dtype, std::initializer_list<Named> tensors);
// The activation type of an operator: f32 and f64 on the CPU, f32 and bf16 on CUDA. Throws DTypeError.
void check_activation(Context& ctx, const char* op, const Named& tensor);
// Throws ShapeError.
void check_shape(const char* op, const Named& tensor, const Shape& expected);
void check_rank(const char* op, const Named& tensor, int rank);

}  // namespace pm::ops
