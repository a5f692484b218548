#include "engine/ops/token/token_expansion.h"

#include <limits>

#include "engine/ops/dispatch.h"

namespace pm::ops {

ExpansionMap make_expansion_map(const char* op, int64_t regions, int64_t region_h, int64_t region_w, int64_t channels,
                                Expansion expansion, ShiftPad shift_pad, ScanOrder scan) {
  PM_CHECK(region_h >= 1 && region_w >= 1, ShapeError, "{}: a map of {} x {} is empty", op, region_h, region_w);
  const int64_t axis = is_horizontal(expansion) ? region_w : region_h;
  PM_CHECK(axis % 2 == 0, ShapeError, "{}: the {} of a {} x {} map must be even to be halved", op,
           is_horizontal(expansion) ? "width" : "height", region_h, region_w);
  // The output of cat has region_h * region_w + 2 tokens' worth of values, at most; 64-bit products cannot overflow
  // here because a tensor of this shape exists.
  constexpr int64_t kLimit = std::numeric_limits<int>::max();
  PM_CHECK((region_h * region_w + 2) * channels < kLimit, ShapeError,
           "{}: a region of {} x {} x {} values is too large, {} are allowed", op, region_h, region_w, channels,
           kLimit);
  return {
      regions, static_cast<int>(region_h), static_cast<int>(region_w), static_cast<int>(channels), expansion, shift_pad,
      scan};
}

Tensor token_expansion(Context& ctx, const Tensor& tokens, int64_t region_h, int64_t region_w, Expansion expansion,
                       ShiftPad shift_pad, ScanOrder scan) {
  check_activation(ctx, "token_expansion", {"tokens", tokens});
  check_rank("token_expansion", {"tokens", tokens}, 4);
  const int64_t batch = tokens.size(0), n_regions = tokens.size(1), channels = tokens.size(3);
  check_shape("token_expansion", {"tokens", tokens}, {batch, n_regions, region_h * region_w + 1, channels});
  const ExpansionMap map = make_expansion_map("token_expansion", batch * n_regions, region_h, region_w, channels,
                                              expansion, shift_pad, scan);
  Tensor out = Tensor::empty(ctx, {batch, n_regions, int64_t{map.new_h()} * map.new_w() + 1, map.new_channels()},
                             tokens.dtype());
  const TokenExpansionArgs args{tokens.raw(), out.raw(), map, tokens.dtype()};
  dispatch_device(
      ctx, "token_expansion", [&] { cpu::token_expansion(args); },
      [&](auto stream) { cuda::token_expansion(args, stream); });
  return out;
}

Tensor token_expansion_grad(Context& ctx, const Tensor& dout, int64_t region_h, int64_t region_w, Expansion expansion,
                            ShiftPad shift_pad, ScanOrder scan) {
  check_activation(ctx, "token_expansion_grad", {"dout", dout});
  check_rank("token_expansion_grad", {"dout", dout}, 4);
  const int64_t batch = dout.size(0), n_regions = dout.size(1), channels = dout.size(3) / (is_cat(expansion) ? 2 : 1);
  const ExpansionMap map = make_expansion_map("token_expansion_grad", batch * n_regions, region_h, region_w, channels,
                                              expansion, shift_pad, scan);
  check_shape("token_expansion_grad", {"dout", dout},
              {batch, n_regions, int64_t{map.new_h()} * map.new_w() + 1, map.new_channels()});
  Tensor dtokens = Tensor::empty(ctx, {batch, n_regions, region_h * region_w + 1, channels}, dout.dtype());
  const TokenExpansionGradArgs args{dout.raw(), dtokens.raw(), map, dout.dtype()};
  dispatch_device(
      ctx, "token_expansion_grad", [&] { cpu::token_expansion_grad(args); },
      [&](auto stream) { cuda::token_expansion_grad(args, stream); });
  return dtokens;
}

}  // namespace pm::ops
