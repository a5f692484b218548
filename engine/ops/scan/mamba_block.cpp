#include "engine/ops/scan/mamba_block.h"

#include <algorithm>
#include <string>

#include "engine/ops/conv/causal_conv1d.h"
#include "engine/ops/dispatch.h"
#include "engine/ops/scan/mamba_block_plan.h"

namespace pm::ops {
namespace {

constexpr int64_t kMaxState = 64;

// Scratch memory. Training keeps the tokens of every block between forward and backward, so intermediate values have to stay
// small beside them: a step of 6m on 4480 x 4480 pixels fits 4 GB in float32 and 2 GB in bfloat16. A batch of images may take
// more. Inference keeps nothing.
constexpr int64_t kSlideScratchFloat = int64_t{896} << 20, kSlideScratchHalf = int64_t{240} << 20;
constexpr int64_t kBatchScratch = int64_t{2} << 30, kInferenceScratch = int64_t{6} << 30;

int64_t scratch_bytes(const Tensor& tokens, bool training, int64_t spare) {
  if (!training) return kInferenceScratch;
  const int64_t slide = tokens.dtype() == DType::bf16 ? kSlideScratchHalf : kSlideScratchFloat;
  return std::min((tokens.size(0) > 1 ? kBatchScratch : slide) + spare, kInferenceScratch);
}

void check_direction_types(Context& ctx, const std::string& op, const MambaDirectionWeights& w, DType dtype) {
  const std::initializer_list<Named> tensors = {
      {"conv_weight", w.conv_weight}, {"conv_bias", w.conv_bias}, {"x_proj", w.x_proj}, {"dt_weight", w.dt_weight},
      {"dt_bias", w.dt_bias},         {"A_log", w.A_log},         {"D_skip", w.D_skip}};
  check_device(ctx, op.c_str(), tensors);
  check_dtype(op.c_str(), dtype, tensors);
}

void check_direction_shapes(const std::string& op, const MambaDirectionWeights& w, const MambaBlockArgs& args) {
  const char* name = op.c_str();
  check_shape(name, {"conv_weight", w.conv_weight}, {args.d_inner, 1, args.d_conv});
  check_shape(name, {"conv_bias", w.conv_bias}, {args.d_inner});
  check_shape(name, {"x_proj", w.x_proj}, {args.dt_rank + 2 * args.d_state, args.d_inner});
  check_shape(name, {"dt_weight", w.dt_weight}, {args.d_inner, args.dt_rank});
  check_shape(name, {"dt_bias", w.dt_bias}, {args.d_inner});
  check_shape(name, {"A_log", w.A_log}, {args.d_inner, args.d_state});
  check_shape(name, {"D_skip", w.D_skip}, {args.d_inner});
}

// The sizes that the rest must agree with come from tokens, out_proj and three parameters of the forward direction.
void check_sizes(const char* op, const MambaBlockArgs& args, const Tensor& tokens, const MambaBlockWeights& w) {
  PM_CHECK(args.channels >= 1, ShapeError, "{}: tokens must have at least one channel, their shape is {}", op,
           tokens.shape().str());
  PM_CHECK(args.d_inner >= 1, ShapeError, "{}: out_proj must have at least one column, it has shape {}", op,
           w.out_proj.shape().str());
  PM_CHECK(args.d_state >= 1 && args.d_state <= kMaxState, ShapeError,
           "{}: d_state must be 1 to {}, A_log has shape {}", op, kMaxState, w.direction[0].A_log.shape().str());
  PM_CHECK(args.d_conv >= 1 && args.d_conv <= kMaxConvTaps, ShapeError,
           "{}: conv_weight must have 1 to {} taps, it has shape {}", op, kMaxConvTaps,
           w.direction[0].conv_weight.shape().str());
  PM_CHECK(args.dt_rank >= 1, ShapeError, "{}: dt_weight must have at least one column, it has shape {}", op,
           w.direction[0].dt_weight.shape().str());
}

MambaDirectionArgs direction_args(const MambaDirectionWeights& w) {
  return {w.conv_weight.raw(), w.conv_bias.raw(), w.x_proj.raw(), w.dt_weight.raw(),
          w.dt_bias.raw(),     w.A_log.raw(),     w.D_skip.raw()};
}
MambaDirectionGradArgs direction_grad_args(MambaDirectionWeights& w) {
  return {w.conv_weight.raw(), w.conv_bias.raw(), w.x_proj.raw(), w.dt_weight.raw(),
          w.dt_bias.raw(),     w.A_log.raw(),     w.D_skip.raw()};
}

MambaBlockArgs checked_args(Context& ctx, const char* op, const Tensor& tokens, const MambaBlockWeights& w,
                            const MambaBlockOptions& options, bool training) {
  const MambaDirectionWeights& first = w.direction[0];
  const std::string forward_op = std::string(op) + " forward", reverse_op = std::string(op) + " reverse";
  const DType parameter = param_dtype(tokens.dtype());
  check_activation(ctx, op, {"tokens", tokens});
  check_device(ctx, op, {{"norm", w.norm}, {"in_proj", w.in_proj}, {"out_proj", w.out_proj}});
  check_dtype(op, parameter, {{"norm", w.norm}, {"in_proj", w.in_proj}, {"out_proj", w.out_proj}});
  check_direction_types(ctx, forward_op, first, parameter);
  check_direction_types(ctx, reverse_op, w.direction[1], parameter);
  check_rank(op, {"tokens", tokens}, 3);
  check_rank(op, {"out_proj", w.out_proj}, 2);
  check_rank(forward_op.c_str(), {"conv_weight", first.conv_weight}, 3);
  check_rank(forward_op.c_str(), {"dt_weight", first.dt_weight}, 2);
  check_rank(forward_op.c_str(), {"A_log", first.A_log}, 2);
  const MambaBlockArgs args{tokens.raw(),
                            w.norm.raw(),
                            w.in_proj.raw(),
                            w.out_proj.raw(),
                            {direction_args(first), direction_args(w.direction[1])},
                            /*out=*/nullptr,
                            tokens.size(0),
                            tokens.size(1),
                            tokens.size(2),
                            /*d_inner=*/w.out_proj.size(1),
                            /*d_state=*/first.A_log.size(1),
                            /*d_conv=*/first.conv_weight.size(2),
                            /*dt_rank=*/first.dt_weight.size(1),
                            options.norm_eps,
                            options.divide_out,
                            tokens.dtype(),
                            scratch_bytes(tokens, training, options.spare_bytes)};
  PM_CHECK(options.spare_bytes >= 0, ShapeError, "{}: spare_bytes must not be negative, got {}", op,
           options.spare_bytes);
  check_sizes(op, args, tokens, w);
  check_shape(op, {"norm", w.norm}, {args.channels});
  check_shape(op, {"in_proj", w.in_proj}, {2 * args.d_inner, args.channels});
  check_shape(op, {"out_proj", w.out_proj}, {args.channels, args.d_inner});
  check_direction_shapes(forward_op, first, args);
  check_direction_shapes(reverse_op, w.direction[1], args);
  return args;
}

void check_covered(Context& ctx, const char* op, const MambaBlockArgs& args) {
  PM_CHECK(ctx.device().is_cpu() || cuda::mamba_block_covers(args), ShapeError,
           "{}: no kernel for {} channels, d_inner {}, d_state {}, d_conv {}, dt_rank {}: ask mamba_block_covers first "
           "and compose the block of smaller operators",
           op, args.channels, args.d_inner, args.d_state, args.d_conv, args.dt_rank);
}

}  // namespace

bool mamba_block_covers(Context& ctx, const Tensor& tokens, const MambaBlockWeights& weights) {
  const char* op = "mamba_block_covers";
  const MambaBlockArgs args = checked_args(ctx, op, tokens, weights, {}, /*training=*/false);
  return ctx.device().is_cpu() || tokens.numel() == 0 || cuda::mamba_block_covers(args);
}

Tensor mamba_block(Context& ctx, const Tensor& tokens, const MambaBlockWeights& weights,
                   const MambaBlockOptions& options) {
  const char* op = "mamba_block";
  MambaBlockArgs args = checked_args(ctx, op, tokens, weights, options, ctx.grad_enabled());
  Tensor out = Tensor::empty(ctx, tokens.shape(), tokens.dtype());
  if (out.numel() == 0) return out;
  args.out = out.raw();
  check_covered(ctx, op, args);
  count_scratch(ctx,
                [&](bool cpu) { return cpu ? cpu::mamba_block_scratch(args) : cuda::block::forward_scratch(args); });
  dispatch_device(
      ctx, op, [&] { cpu::mamba_block(args, ctx.backend()); }, [&](auto stream) { cuda::mamba_block(args, stream); });
  return out;
}

MambaBlockGrads mamba_block_grad(Context& ctx, const Tensor& dout, const Tensor& tokens,
                                 const MambaBlockWeights& weights, const MambaBlockOptions& options) {
  const char* op = "mamba_block_grad";
  const MambaBlockArgs forward = checked_args(ctx, op, tokens, weights, options, /*training=*/true);
  check_device(ctx, op, {{"dout", dout}});
  check_dtype(op, tokens.dtype(), {{"dout", dout}});
  check_shape(op, {"dout", dout}, tokens.shape());
  // Without a token no kernel runs, and what sums over nothing is zero.
  const auto like = [&](const Tensor& tensor) {
    return tokens.numel() == 0 ? Tensor::zeros(ctx, tensor.shape(), tensor.dtype())
                               : Tensor::empty(ctx, tensor.shape(), tensor.dtype());
  };
  const auto direction_like = [&](const MambaDirectionWeights& w) {
    return MambaDirectionWeights{like(w.conv_weight), like(w.conv_bias), like(w.x_proj), like(w.dt_weight),
                                 like(w.dt_bias),     like(w.A_log),     like(w.D_skip)};
  };
  MambaBlockGrads grads{like(tokens),
                        {like(weights.norm),
                         like(weights.in_proj),
                         like(weights.out_proj),
                         {direction_like(weights.direction[0]), direction_like(weights.direction[1])}}};
  if (tokens.numel() == 0) return grads;
  MambaBlockWeights& d = grads.dweights;
  const MambaBlockGradArgs args{forward,
                                dout.raw(),
                                grads.dtokens.raw(),
                                d.norm.raw(),
                                d.in_proj.raw(),
                                d.out_proj.raw(),
                                {direction_grad_args(d.direction[0]), direction_grad_args(d.direction[1])}};
  check_covered(ctx, op, forward);
  count_scratch(ctx, [&](bool cpu) {
    return cpu ? cpu::mamba_block_grad_scratch(forward) : cuda::block::gradient_scratch(forward);
  });
  dispatch_device(
      ctx, op, [&] { cpu::mamba_block_grad(args, ctx.backend()); },
      [&](auto stream) { cuda::mamba_block_grad(args, stream); });
  return grads;
}

}  // namespace pm::ops
