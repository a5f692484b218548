// out[row, o] = sum over i of x[row, i] * weight[o, i] + bias[o] + addend[row, o]   (in_proj, x_proj, dt_proj, out_proj, head)
// bias and addend may be left out; an addend (a residual connection) is added before out is rounded.
// linear_split: the same without bias and addend, the output columns cut into consecutive groups, one tensor per group
// (in_proj -> x, z; x_proj -> dt, B, C): no copy is needed to take them apart.
// dx[row, i]    = sum over o of dout[row, o] * weight[o, i]            (o runs over all groups)
// dweight[o, i] = sum over rows of dout[row, o] * x[row, i];   dbias[o] = sum over rows of dout[row, o]
// x: (..., in_features), out: (..., out_features), contiguous, one dtype (CPU f32, f64; CUDA f32, bf16)
// weight, dweight: (out_features, in_features), bias, dbias: (out_features), contiguous, param_dtype(x)
// rows = product of the leading axes of x, any number; in_features and every group have at least one column.
#pragma once
#include <cstdint>
#include <vector>

#include "engine/core/tensor.h"

namespace pm {

constexpr int kMaxLinearGroups = 4;

// One group of output columns: (rows, features), contiguous.
struct LinearOut {
  void* data;
  int64_t features;
  const void* addend = nullptr;  // (rows, features), contiguous, added; null: nothing. May be `data`, or not overlap it
};
// The gradient of one group.
struct LinearDout {
  const void* data;
  int64_t features;
};

struct LinearArgs {
  const void* x;       // (rows, in_features)
  const void* weight;  // (out_features, in_features), rows in group order
  const void* bias;    // (out_features) or null
  std::vector<LinearOut> groups;
  int64_t rows, in_features, out_features;
  DType dtype;
  const void* stored_weight = nullptr;  // CUDA: the weight in bf16 too, where the caller has it; null: rounded here
};
struct LinearGradInputArgs {
  std::vector<LinearDout> groups;
  const void* weight;  // (out_features, in_features)
  void* dx;            // (rows, in_features)
  int64_t rows, in_features, out_features;
  DType dtype;
  const void* stored_weight = nullptr;  // as above
};
struct LinearGradWeightArgs {
  std::vector<LinearDout> groups;
  const void* x;  // (rows, in_features)
  void* dweight;  // (out_features, in_features)
  int64_t rows, in_features, out_features;
  DType dtype;
};
struct LinearGradBiasArgs {
  const void* dout;  // (rows, out_features)
  void* dbias;       // (out_features)
  int64_t rows, out_features;
  DType dtype;
};

namespace cpu {
void linear(const LinearArgs&);
void linear_grad_input(const LinearGradInputArgs&);
void linear_grad_weight(const LinearGradWeightArgs&);
void linear_grad_bias(const LinearGradBiasArgs&);
}  // namespace cpu
namespace cuda {
void linear(const LinearArgs&, Stream);
void linear_grad_input(const LinearGradInputArgs&, Stream);
void linear_grad_weight(const LinearGradWeightArgs&, Stream);
void linear_grad_bias(const LinearGradBiasArgs&, Stream);
}  // namespace cuda

namespace ops {
// Each throws ShapeError, DTypeError or DeviceError when the tensors do not match.
// x (..., in_features), weight (out_features, in_features), bias (out_features) or undefined, addend (..., out_features) of
// x's dtype or undefined -> (..., out_features)
Tensor linear(Context& ctx, const Tensor& x, const Tensor& weight, const Tensor& bias = {}, const Tensor& addend = {});
// sizes: rows of weight per group, 1 to kMaxLinearGroups entries that add up to out_features -> (..., sizes[g]) each
std::vector<Tensor> linear_split(Context& ctx, const Tensor& x, const Tensor& weight,
                                 const std::vector<int64_t>& sizes);
// douts: one (..., sizes[g]) per group (one for linear), weight (out_features, in_features) -> dx (..., in_features)
Tensor linear_grad_input(Context& ctx, const std::vector<Tensor>& douts, const Tensor& weight);
// douts as above, x (..., in_features) -> dweight (out_features, in_features), param dtype
Tensor linear_grad_weight(Context& ctx, const std::vector<Tensor>& douts, const Tensor& x);
// dout (..., out_features) -> dbias (out_features), param dtype
Tensor linear_grad_bias(Context& ctx, const Tensor& dout);
}  // namespace ops

}  // namespace pm
