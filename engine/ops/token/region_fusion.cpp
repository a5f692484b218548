#include "engine/ops/token/region_fusion.h"

#include "engine/ops/dispatch.h"

namespace pm::ops {

RegionFusionResult region_fusion(Context& ctx, const Tensor& tokens, int64_t k) {
  check_activation(ctx, "region_fusion", {"tokens", tokens});
  check_rank("region_fusion", {"tokens", tokens}, 4);
  const int64_t batch = tokens.size(0), n_regions = tokens.size(1), region_len = tokens.size(2),
                channels = tokens.size(3);
  PM_CHECK(k >= 0 && k <= n_regions / 2, ShapeError, "region_fusion: k must be 0 to {} for {} regions, it is {}",
           n_regions / 2, n_regions, k);
  PM_CHECK(region_len >= 1 && channels >= 1, ShapeError, "region_fusion: a region has no values in shape {}",
           tokens.shape().str());

  RegionFusionResult result{Tensor::empty(ctx, {batch, n_regions - k, region_len, channels}, tokens.dtype()),
                            Tensor::empty(ctx, {batch, n_regions}, DType::i64),
                            Tensor::empty(ctx, {batch, n_regions - k}, DType::i64)};
  if (tokens.numel() == 0) return result;
  const RegionFusionArgs args{tokens.raw(),
                              result.out.raw(),
                              result.target.data<int64_t>(),
                              result.count.data<int64_t>(),
                              batch,
                              n_regions,
                              region_len,
                              channels,
                              k,
                              tokens.dtype()};
  dispatch_device(
      ctx, "region_fusion", [&] { cpu::region_fusion(args); }, [&](auto stream) { cuda::region_fusion(args, stream); });
  return result;
}

Tensor region_fusion_grad(Context& ctx, const Tensor& dout, const Tensor& target, const Tensor& count) {
  check_activation(ctx, "region_fusion_grad", {"dout", dout});
  check_device(ctx, "region_fusion_grad", {{"target", target}, {"count", count}});
  check_dtype("region_fusion_grad", DType::i64, {{"target", target}, {"count", count}});
  check_rank("region_fusion_grad", {"dout", dout}, 4);
  check_rank("region_fusion_grad", {"target", target}, 2);
  const int64_t batch = dout.size(0), n_out = dout.size(1), n_regions = target.size(1);
  check_shape("region_fusion_grad", {"target", target}, {batch, n_regions});
  check_shape("region_fusion_grad", {"count", count}, {batch, n_out});

  Tensor dtokens = Tensor::empty(ctx, {batch, n_regions, dout.size(2), dout.size(3)}, dout.dtype());
  if (dtokens.numel() == 0) return dtokens;
  const RegionFusionGradArgs args{
      dout.raw(), target.data<int64_t>(),      count.data<int64_t>(), dtokens.raw(), batch, n_regions,
      n_out,      dout.size(2) * dout.size(3), dout.dtype()};
  dispatch_device(
      ctx, "region_fusion_grad", [&] { cpu::region_fusion_grad(args); },
      [&](auto stream) { cuda::region_fusion_grad(args, stream); });
  return dtokens;
}

}  // namespace pm::ops
