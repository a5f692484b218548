#include "engine/ops/elementwise/scaled_add.h"

#include "engine/ops/dispatch.h"

namespace pm::ops {
namespace {

void run(Context& ctx, const Tensor& a, double alpha, const Tensor* b, double beta, double constant, Tensor& out) {
  check_activation(ctx, "scaled_add", {"a", a});
  if (b != nullptr) {
    check_device(ctx, "scaled_add", {{"b", *b}});
    check_dtype("scaled_add", a.dtype(), {{"b", *b}});
    check_shape("scaled_add", {"b", *b}, a.shape());
  }
  const ScaledAddArgs args{a.raw(),  b != nullptr ? b->raw() : nullptr, out.raw(), alpha, beta, constant, a.numel(),
                           a.dtype()};
  dispatch_device(
      ctx, "scaled_add", [&] { cpu::scaled_add(args); }, [&](auto stream) { cuda::scaled_add(args, stream); });
}

}  // namespace

Tensor scaled_add(Context& ctx, const Tensor& a, double alpha, const Tensor& b, double beta) {
  Tensor out = Tensor::empty(ctx, a.shape(), a.dtype());
  run(ctx, a, alpha, &b, beta, 0.0, out);
  return out;
}

Tensor scale(Context& ctx, const Tensor& a, double alpha) {
  Tensor out = Tensor::empty(ctx, a.shape(), a.dtype());
  run(ctx, a, alpha, nullptr, 0.0, 0.0, out);
  return out;
}

void scaled_add_in_place(Context& ctx, Tensor& a, double alpha, const Tensor& b, double beta) {
  run(ctx, a, alpha, &b, beta, 0.0, a);
}
void add_in_place(Context& ctx, Tensor& sum, const Tensor& term) { run(ctx, sum, 1.0, &term, 1.0, 0.0, sum); }
void scale_in_place(Context& ctx, Tensor& a, double alpha) { run(ctx, a, alpha, nullptr, 0.0, 0.0, a); }
void add_constant_in_place(Context& ctx, Tensor& a, double constant) { run(ctx, a, 1.0, nullptr, 0.0, constant, a); }

}  // namespace pm::ops
