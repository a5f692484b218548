#include "engine/ops/token/fusion_expansion.h"

#include "engine/ops/dispatch.h"

namespace pm::ops {

RegionFusionResult fusion_expansion(Context& ctx, const Tensor& tokens, int64_t k, int64_t region_h, int64_t region_w,
                                    Expansion expansion, ShiftPad shift_pad, ScanOrder scan) {
  const char* op = "fusion_expansion";
  check_activation(ctx, op, {"tokens", tokens});
  check_rank(op, {"tokens", tokens}, 4);
  const int64_t batch = tokens.size(0), n_regions = tokens.size(1), channels = tokens.size(3), n_out = n_regions - k;
  PM_CHECK(k >= 0 && k <= n_regions / 2, ShapeError, "{}: k must be 0 to {} for {} regions, it is {}", op,
           n_regions / 2, n_regions, k);
  check_shape(op, {"tokens", tokens}, {batch, n_regions, region_h * region_w + 1, channels});
  const ExpansionMap map =
      make_expansion_map(op, batch * n_out, region_h, region_w, channels, expansion, shift_pad, scan);

  RegionFusionResult result{
      Tensor::empty(ctx, {batch, n_out, int64_t{map.new_h()} * map.new_w() + 1, map.new_channels()}, tokens.dtype()),
      Tensor::empty(ctx, {batch, n_regions}, DType::i64), Tensor::empty(ctx, {batch, n_out}, DType::i64)};
  if (tokens.numel() == 0) return result;
  const FusionExpansionArgs args{
      tokens.raw(), result.out.raw(), result.target.data<int64_t>(), result.count.data<int64_t>(), batch, n_regions, k,
      map,          tokens.dtype()};
  dispatch_device(
      ctx, op, [&] { cpu::fusion_expansion(args); }, [&](auto stream) { cuda::fusion_expansion(args, stream); });
  return result;
}

Tensor fusion_expansion_grad(Context& ctx, const Tensor& dout, const Tensor& target, const Tensor& count,
                             int64_t region_h, int64_t region_w, Expansion expansion, ShiftPad shift_pad,
                             ScanOrder scan) {
  const char* op = "fusion_expansion_grad";
  check_activation(ctx, op, {"dout", dout});
  check_device(ctx, op, {{"target", target}, {"count", count}});
  check_dtype(op, DType::i64, {{"target", target}, {"count", count}});
  check_rank(op, {"dout", dout}, 4);
  check_rank(op, {"target", target}, 2);
  const int64_t batch = dout.size(0), n_out = dout.size(1), n_regions = target.size(1);
  const int64_t channels = dout.size(3) / (is_cat(expansion) ? 2 : 1);
  check_shape(op, {"target", target}, {batch, n_regions});
  check_shape(op, {"count", count}, {batch, n_out});
  const ExpansionMap map =
      make_expansion_map(op, batch * n_regions, region_h, region_w, channels, expansion, shift_pad, scan);
  check_shape(op, {"dout", dout}, {batch, n_out, int64_t{map.new_h()} * map.new_w() + 1, map.new_channels()});

  Tensor dtokens = Tensor::empty(ctx, {batch, n_regions, region_h * region_w + 1, channels}, dout.dtype());
  if (dtokens.numel() == 0) return dtokens;
  const FusionExpansionGradArgs args{
      dout.raw(),  target.data<int64_t>(), count.data<int64_t>(), dtokens.raw(), batch, n_regions, n_out, map,
      dout.dtype()};
  dispatch_device(
      ctx, op, [&] { cpu::fusion_expansion_grad(args); },
      [&](auto stream) { cuda::fusion_expansion_grad(args, stream); });
  return dtokens;
}

}  // namespace pm::ops
