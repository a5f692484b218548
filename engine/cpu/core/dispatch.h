// Calls a lambda with the C++ type of a CPU element type: the CPU backend computes in float or double.
#pragma once
#include <utility>

#include "engine/core/check.h"
#include "engine/core/dtype.h"

namespace pm::cpu {

// dispatch_float(dtype, [&]<typename T>() { ... }); throws DTypeError for anything but f32 and f64.
template <typename Fn>
void dispatch_float(DType dtype, Fn&& fn) {
  switch (dtype) {
    case DType::f32:
      return std::forward<Fn>(fn).template operator()<float>();
    case DType::f64:
      return std::forward<Fn>(fn).template operator()<double>();
    default:
      throw DTypeError(fmt::format("the CPU computes in f32 or f64, got {}", to_string(dtype)));
  }
}

}  // namespace pm::cpu
