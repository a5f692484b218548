#include "engine/ops/gemm/linear.h"

#include <numeric>

#include "engine/ops/dispatch.h"

namespace pm::ops {
namespace {

int64_t leading_rows(const Shape& shape) { return shape.numel(0, shape.rank() - 1); }

// `shape` with another number of features.
Shape with_features(const Shape& shape, int64_t features) {
  Shape result(shape.begin(), shape.end() - 1);
  result.push_back(features);
  return result;
}

void check_activations(Context& ctx, const char* op, const Named& x) {
  check_activation(ctx, op, x);
  const Shape& shape = x.tensor.shape();
  PM_CHECK(shape.rank() >= 1 && shape[-1] >= 1, ShapeError, "{}: {} must have shape (..., features), it has {}", op,
           x.name, shape.str());
}

void check_weight(Context& ctx, const char* op, const Tensor& weight, DType activation) {
  check_device(ctx, op, {{"weight", weight}});
  check_dtype(op, param_dtype(activation), {{"weight", weight}});
  check_rank(op, {"weight", weight}, 2);
}

// Checks the gradients of the groups and returns their total width.
int64_t check_douts(Context& ctx, const char* op, const std::vector<Tensor>& douts) {
  PM_CHECK(!douts.empty() && douts.size() <= kMaxLinearGroups, ShapeError, "{}: expected 1 to {} groups, got {}", op,
           kMaxLinearGroups, douts.size());
  int64_t features = 0;
  for (const Tensor& dout : douts) {
    check_activations(ctx, op, {"dout", dout});
    check_dtype(op, douts[0].dtype(), {{"dout", dout}});
    check_shape(op, {"dout", dout}, with_features(douts[0].shape(), dout.size(-1)));
    features += dout.size(-1);
  }
  return features;
}

std::vector<LinearDout> dout_groups(const std::vector<Tensor>& douts) {
  std::vector<LinearDout> groups;
  for (const Tensor& dout : douts) groups.push_back({dout.raw(), dout.size(-1)});
  return groups;
}

// addend: of the first group, or undefined
std::vector<Tensor> run(Context& ctx, const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& addend,
                        const std::vector<int64_t>& sizes) {
  std::vector<Tensor> outs;
  std::vector<LinearOut> groups;
  for (const int64_t size : sizes) {
    outs.push_back(Tensor::empty(ctx, with_features(x.shape(), size), x.dtype()));
    groups.push_back({outs.back().raw(), size});
  }
  if (addend.defined()) groups[0].addend = addend.raw();
  const LinearArgs args{x.raw(),
                        weight.raw(),
                        bias.defined() ? bias.raw() : nullptr,
                        std::move(groups),
                        leading_rows(x.shape()),
                        weight.size(1),
                        weight.size(0),
                        x.dtype()};
  dispatch_device(
      ctx, "linear", [&] { cpu::linear(args); }, [&](auto stream) { cuda::linear(args, stream); });
  return outs;
}

}  // namespace

Tensor linear(Context& ctx, const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& addend) {
  check_activations(ctx, "linear", {"x", x});
  check_weight(ctx, "linear", weight, x.dtype());
  PM_CHECK(weight.size(0) >= 1, ShapeError, "linear: weight must have at least one row, it has shape {}",
           weight.shape().str());
  check_shape("linear", {"weight", weight}, {weight.size(0), x.size(-1)});
  if (bias.defined()) {
    check_device(ctx, "linear", {{"bias", bias}});
    check_dtype("linear", param_dtype(x.dtype()), {{"bias", bias}});
    check_shape("linear", {"bias", bias}, {weight.size(0)});
  }
  if (addend.defined()) {
    check_device(ctx, "linear", {{"addend", addend}});
    check_dtype("linear", x.dtype(), {{"addend", addend}});
    check_shape("linear", {"addend", addend}, with_features(x.shape(), weight.size(0)));
  }
  return run(ctx, x, weight, bias, addend, {weight.size(0)})[0];
}

std::vector<Tensor> linear_split(Context& ctx, const Tensor& x, const Tensor& weight,
                                 const std::vector<int64_t>& sizes) {
  check_activations(ctx, "linear_split", {"x", x});
  check_weight(ctx, "linear_split", weight, x.dtype());
  PM_CHECK(!sizes.empty() && sizes.size() <= kMaxLinearGroups, ShapeError,
           "linear_split: expected 1 to {} sizes, got {}", kMaxLinearGroups, sizes.size());
  for (const int64_t size : sizes) {
    PM_CHECK(size >= 1, ShapeError, "linear_split: every group needs at least one row of weight, got {}", size);
  }
  const int64_t out_features = std::accumulate(sizes.begin(), sizes.end(), int64_t{0});
  check_shape("linear_split", {"weight", weight}, {out_features, x.size(-1)});
  return run(ctx, x, weight, Tensor(), Tensor(), sizes);
}

Tensor linear_grad_input(Context& ctx, const std::vector<Tensor>& douts, const Tensor& weight) {
  const char* op = "linear_grad_input";
  const int64_t out_features = check_douts(ctx, op, douts);
  check_weight(ctx, op, weight, douts[0].dtype());
  PM_CHECK(weight.size(1) >= 1, ShapeError, "{}: weight must have at least one column, it has shape {}", op,
           weight.shape().str());
  check_shape(op, {"weight", weight}, {out_features, weight.size(1)});
  Tensor dx = Tensor::empty(ctx, with_features(douts[0].shape(), weight.size(1)), douts[0].dtype());
  const LinearGradInputArgs args{dout_groups(douts), weight.raw(), dx.raw(),  leading_rows(dx.shape()),
                                 weight.size(1),     out_features, dx.dtype()};
  dispatch_device(
      ctx, op, [&] { cpu::linear_grad_input(args); }, [&](auto stream) { cuda::linear_grad_input(args, stream); });
  return dx;
}

Tensor linear_grad_weight(Context& ctx, const std::vector<Tensor>& douts, const Tensor& x) {
  const char* op = "linear_grad_weight";
  const int64_t out_features = check_douts(ctx, op, douts);
  check_activations(ctx, op, {"x", x});
  check_dtype(op, douts[0].dtype(), {{"x", x}});
  check_shape(op, {"x", x}, with_features(douts[0].shape(), x.size(-1)));
  Tensor dweight = Tensor::empty(ctx, {out_features, x.size(-1)}, param_dtype(x.dtype()));
  const LinearGradWeightArgs args{dout_groups(douts), x.raw(),      dweight.raw(), leading_rows(x.shape()),
                                  x.size(-1),         out_features, x.dtype()};
  dispatch_device(
      ctx, op, [&] { cpu::linear_grad_weight(args); }, [&](auto stream) { cuda::linear_grad_weight(args, stream); });
  return dweight;
}

Tensor linear_grad_bias(Context& ctx, const Tensor& dout) {
  const char* op = "linear_grad_bias";
  check_activations(ctx, op, {"dout", dout});
  Tensor dbias = Tensor::empty(ctx, {dout.size(-1)}, param_dtype(dout.dtype()));
  const LinearGradBiasArgs args{dout.raw(), dbias.raw(), leading_rows(dout.shape()), dout.size(-1), dout.dtype()};
  dispatch_device(
      ctx, op, [&] { cpu::linear_grad_bias(args); }, [&](auto stream) { cuda::linear_grad_bias(args, stream); });
  return dbias;
}

}  // namespace pm::ops
