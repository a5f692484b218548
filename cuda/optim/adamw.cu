// AdamW over all tensors of a step; see engine/ops/optim/adamw.h for the maths
//   tick_kernel   : one thread counts the step and works out, once and in double, what all tensors share
//   update_kernel : all tensors of a batch (multi_tensor.cuh) in one launch
// launch  : a model of 6.6e6 parameters in 412 tensors: about 2,000 blocks of kBlock threads in one launch; every update has two
//           launches up to 512 tensors
// traffic : 4 reads + 3 writes = 28 bytes an element, bandwidth-bound; 6.6e6 parameters: 186 MB, 44 us at 4.25 TB/s
// numerics: float32 with IEEE square root and division; rates and bias corrections in double; deterministic (no reduction)
#include "cuda/core/launch.cuh"
#include "cuda/optim/multi_tensor.cuh"
#include "engine/ops/optim/adamw.h"
#include "engine/ops/optim/global_norm.h"

namespace pm::cuda {
namespace {

struct Item {
  float* param;
  const float* grad;
  float* exp_avg;
  float* exp_avg_sq;
  int64_t n;
  double lr_scale, weight_decay;
};

// Shared by all tensors of one step.
struct Factors {
  double lr, inverse_bias1;
  float grad, inverse_sqrt_bias2;
};

__global__ void tick_kernel(double* __restrict__ clock, const float* __restrict__ norm, AdamWStep step,
                            Factors* __restrict__ factors) {
  const double count = clock[1] + 1.0;
  clock[1] = count;
  const double clip = norm == nullptr ? 1.0 : clip_factor(static_cast<double>(*norm), step.max_norm);
  *factors = {clock[0], 1.0 / (1.0 - pow(step.beta1, count)), static_cast<float>(step.grad_scale * clip),
              static_cast<float>(1.0 / sqrt(1.0 - pow(step.beta2, count)))};
}

__global__ void set_learning_rate_kernel(double* clock, double lr) { clock[0] = lr; }

__global__ void __launch_bounds__(kBlock)
    update_kernel(const __grid_constant__ TensorBatch<Item> batch, const Factors* __restrict__ factors, float beta1,
                  float rest1, float beta2, float rest2, float eps) {
  const TensorTurn turn = turn_of_block(batch);
  const Item& item = batch.items[turn.tensor];
  float* __restrict__ param = item.param;
  const float* __restrict__ grad = item.grad;
  float* __restrict__ exp_avg = item.exp_avg;
  float* __restrict__ exp_avg_sq = item.exp_avg_sq;
  const int64_t n = item.n;
  const Factors f = *factors;
  const double rate = f.lr * item.lr_scale;
  const float decay = static_cast<float>(1.0 - rate * item.weight_decay),
              step_size = static_cast<float>(rate * f.inverse_bias1);
#pragma unroll 2
  for (int64_t i = turn.begin; i < n; i += turn.stride) {
    const float g = f.grad * grad[i];
    const float m = beta1 * exp_avg[i] + rest1 * g;
    const float v = beta2 * exp_avg_sq[i] + rest2 * g * g;
    exp_avg[i] = m;
    exp_avg_sq[i] = v;
    param[i] = decay * param[i] - step_size * m / (sqrtf(v) * f.inverse_sqrt_bias2 + eps);
  }
}

}  // namespace

void set_learning_rate(const SetLearningRateArgs& args, Stream stream) {
  set_learning_rate_kernel<<<1, 1, 0, raw(stream)>>>(args.clock, args.lr);
  PM_CHECK_LAUNCH("set_learning_rate");
}

void adamw(const AdamWArgs& args, Stream stream) {
  Scratch<Factors> factors(stream, 1);
  tick_kernel<<<1, 1, 0, raw(stream)>>>(args.clock, static_cast<const float*>(args.norm), args.step, factors.get());
  PM_CHECK_LAUNCH("adamw tick");
  const auto item = [&](size_t i) {
    const AdamWArgs::Item& t = args.items[i];
    return Item{static_cast<float*>(t.param),
                static_cast<const float*>(t.grad),
                static_cast<float*>(t.exp_avg),
                static_cast<float*>(t.exp_avg_sq),
                t.n,
                t.lr_scale,
                t.weight_decay};
  };
  const AdamWStep& step = args.step;
  for_batches<Item>(args.items.size(), item, [&](const auto& batch) {
    update_kernel<<<static_cast<unsigned>(batch.blocks()), kBlock, 0, raw(stream)>>>(
        batch, factors.get(), static_cast<float>(step.beta1), static_cast<float>(1.0 - step.beta1),
        static_cast<float>(step.beta2), static_cast<float>(1.0 - step.beta2), static_cast<float>(step.eps));
    PM_CHECK_LAUNCH("adamw update");
  });
}

}  // namespace pm::cuda
