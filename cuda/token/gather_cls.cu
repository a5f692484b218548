// Copies one token of every region out of, or back into, the sequence (engine/ops/token/gather_cls.h).
//
// launch : one warp-sized block per region, threads along channels; 1 block for one region, 1e5 for 1e5. The gradient writes
//          into zeros, so that the fill runs at the speed of a memset.
// traffic: 2 * regions * channels * sizeof(T) bytes: microseconds, bound by the launch. deterministic: copies only.
#include "cuda/core/launch.cuh"
#include "cuda/core/reduce.cuh"
#include "engine/ops/token/gather_cls.h"

namespace pm::cuda {
namespace {

// Row `i` of `from` goes to row `i` of `to`; rows start `from_stride` and `to_stride` values apart.
template <typename T>
__global__ void __launch_bounds__(kWarp) copy_rows_kernel(const T* __restrict__ from, int64_t from_stride,
                                                          T* __restrict__ to, int64_t to_stride, int64_t channels) {
  const T* source = from + blockIdx.x * from_stride;
  T* destination = to + blockIdx.x * to_stride;
  for (int64_t c = threadIdx.x; c < channels; c += kWarp) destination[c] = source[c];
}

}  // namespace

void gather_cls(const GatherClsArgs& args, Stream stream) {
  if (args.regions * args.channels == 0) return;
  const int64_t cls_offset = (args.region_len - 1) / 2 * args.channels;
  dispatch_float(args.dtype, [&]<typename T>() {
    copy_rows_kernel<T><<<static_cast<unsigned>(args.regions), kWarp, 0, raw(stream)>>>(
        static_cast<const T*>(args.tokens) + cls_offset, args.region_len * args.channels, static_cast<T*>(args.out),
        args.channels, args.channels);
    PM_CHECK_LAUNCH("gather_cls");
  });
}

void gather_cls_grad(const GatherClsGradArgs& args, Stream stream) {
  if (args.regions * args.channels == 0) return;
  const int64_t cls_offset = (args.region_len - 1) / 2 * args.channels;
  dispatch_float(args.dtype, [&]<typename T>() {
    copy_rows_kernel<T><<<static_cast<unsigned>(args.regions), kWarp, 0, raw(stream)>>>(
        static_cast<const T*>(args.dout), args.channels, static_cast<T*>(args.dtokens) + cls_offset,
        args.region_len * args.channels, args.channels);
    PM_CHECK_LAUNCH("gather_cls_grad");
  });
}

}  // namespace pm::cuda
