// out[i] = low + (high - low) * u_i, u_i from word i % 4 of Philox block i / 4
// launch  : 1-D grid-stride loop over blocks of four elements, kBlock threads, 1 to kMaxGrid blocks; any n, no alignment needed
// traffic : 1 write = n * sizeof(T) bytes; ten Philox rounds per four elements keep the integer units busy about as long
// numerics: fma in double, then one rounding to float (and one to bf16): the same bits as on the CPU
#include "cuda/core/launch.cuh"
#include "engine/ops/elementwise/uniform.h"

namespace pm::cuda {
namespace {

constexpr int kWords = 4;

template <typename T>
__global__ void __launch_bounds__(kBlock)
    uniform_kernel(T* __restrict__ out, int64_t n, double low, double width, RngState draw) {
  const int64_t step = int64_t{gridDim.x} * kBlock;
  for (int64_t i = int64_t{blockIdx.x} * kBlock + threadIdx.x; i * kWords < n; i += step) {
    const PhiloxBlock block = philox_at(draw.seed, draw.offset, static_cast<uint64_t>(i));
#pragma unroll
    for (int word = 0; word < kWords; ++word) {
      const int64_t at = i * kWords + word;
      const double u = uniform_from_word(block.word[word]);
      if (at < n) out[at] = from_float<T>(static_cast<float>(fma(width, u, low)));
    }
  }
}

}  // namespace

void uniform(const UniformArgs& args, Stream stream) {
  if (args.n == 0) return;
  dispatch_float(args.dtype, [&]<typename T>() {
    uniform_kernel<T><<<grid_for(ceil_div(args.n, kWords)), kBlock, 0, raw(stream)>>>(
        static_cast<T*>(args.out), args.n, args.low, args.high - args.low, args.draw);
    PM_CHECK_LAUNCH("uniform");
  });
}

}  // namespace pm::cuda
