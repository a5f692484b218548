// AdamW, one parameter tensor a launch; see engine/ops/optim/adamw.h for the maths
// launch  : 1-D grid-stride loop, kBlock threads, 1 to kMaxGrid blocks; any n, no alignment needed
// traffic : 4 reads + 3 writes = 28 * n bytes, bandwidth-bound; 21e6 parameters: 0.59 GB, 0.14 ms at 4.25 TB/s
// numerics: float32 with IEEE square root and division; deterministic (no reduction)
#include "cuda/core/launch.cuh"
#include "engine/ops/optim/adamw.h"

namespace pm::cuda {
namespace {

struct Factors {
  float decay, beta1, rest1, beta2, rest2, eps, step_size, scale;
};

__global__ void __launch_bounds__(kBlock)
    adamw_kernel(float* __restrict__ param, const float* __restrict__ grad, float* __restrict__ exp_avg,
                 float* __restrict__ exp_avg_sq, Factors f, int64_t n) {
  const int64_t step = int64_t{gridDim.x} * kBlock;
  for (int64_t i = int64_t{blockIdx.x} * kBlock + threadIdx.x; i < n; i += step) {
    const float g = grad[i];
    const float m = f.beta1 * exp_avg[i] + f.rest1 * g;
    const float v = f.beta2 * exp_avg_sq[i] + f.rest2 * g * g;
    exp_avg[i] = m;
    exp_avg_sq[i] = v;
    param[i] = f.decay * param[i] - f.step_size * m / (sqrtf(v) * f.scale + f.eps);
  }
}

}  // namespace

void adamw(const AdamWArgs& args, Stream stream) {
  if (args.n == 0) return;
  const Factors factors{static_cast<float>(args.decay),       static_cast<float>(args.beta1),
                        static_cast<float>(1.0 - args.beta1), static_cast<float>(args.beta2),
                        static_cast<float>(1.0 - args.beta2), static_cast<float>(args.eps),
                        static_cast<float>(args.step_size),   static_cast<float>(args.inverse_sqrt_bias2)};
  adamw_kernel<<<grid_for(args.n), kBlock, 0, raw(stream)>>>(
      static_cast<float*>(args.param), static_cast<const float*>(args.grad), static_cast<float*>(args.exp_avg),
      static_cast<float*>(args.exp_avg_sq), factors, args.n);
  PM_CHECK_LAUNCH("adamw");
}

}  // namespace pm::cuda
