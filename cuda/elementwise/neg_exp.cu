// out = -exp(x);   dx = dout * out
// launch  : 1-D grid-stride loop, kBlock threads, 1 to kMaxGrid blocks; any n, no alignment needed
// traffic : forward 1 read + 1 write, gradient 2 reads + 1 write of n * sizeof(T) bytes; at most d_inner * d_state elements,
//           so a launch costs more than the bytes
// numerics: float maths; deterministic (no reduction)
#include "cuda/core/launch.cuh"
#include "engine/ops/elementwise/neg_exp.h"

namespace pm::cuda {
namespace {

template <typename T>
__global__ void __launch_bounds__(kBlock) neg_exp_kernel(const T* __restrict__ x, T* __restrict__ out, int64_t n) {
  const int64_t step = int64_t{gridDim.x} * kBlock;
  for (int64_t i = int64_t{blockIdx.x} * kBlock + threadIdx.x; i < n; i += step) {
    out[i] = from_float<T>(-expf(to_float(x[i])));
  }
}

template <typename T>
__global__ void __launch_bounds__(kBlock)
    neg_exp_grad_kernel(const T* __restrict__ dout, const T* __restrict__ out, T* __restrict__ dx, int64_t n) {
  const int64_t step = int64_t{gridDim.x} * kBlock;
  for (int64_t i = int64_t{blockIdx.x} * kBlock + threadIdx.x; i < n; i += step) {
    dx[i] = from_float<T>(to_float(dout[i]) * to_float(out[i]));
  }
}

}  // namespace

void neg_exp(const NegExpArgs& args, Stream stream) {
  if (args.n == 0) return;
  dispatch_float(args.dtype, [&]<typename T>() {
    neg_exp_kernel<T><<<grid_for(args.n), kBlock, 0, raw(stream)>>>(static_cast<const T*>(args.x),
                                                                    static_cast<T*>(args.out), args.n);
    PM_CHECK_LAUNCH("neg_exp");
  });
}

void neg_exp_grad(const NegExpGradArgs& args, Stream stream) {
  if (args.n == 0) return;
  dispatch_float(args.dtype, [&]<typename T>() {
    neg_exp_grad_kernel<T><<<grid_for(args.n), kBlock, 0, raw(stream)>>>(
        static_cast<const T*>(args.dout), static_cast<const T*>(args.out), static_cast<T*>(args.dx), args.n);
    PM_CHECK_LAUNCH("neg_exp_grad");
  });
}

}  // namespace pm::cuda
