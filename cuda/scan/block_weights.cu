// The matrices of the fused Mamba block as its kernels read them, made once a call in one launch: x_proj of both directions
// with its rows in the order B, C, dt and rows of zeros behind, in float32; and where activations are bfloat16 every matrix
// rounded to bfloat16, as cuBLASLt wants it.
//
// A projected row holds B (16), C (16), dt (dt_rank) and zeros up to a multiple of 4 columns, so that the scans read B and C
// in aligned pieces of four whatever dt_rank is; x_proj itself has dt in front.
//
// launch  : a thread per element of all parts, one part after the other. traffic: a few hundred KB.
#include "cuda/scan/block.cuh"
#include "cuda/scan/mamba_block.cuh"

namespace pm::cuda::block {
namespace {

constexpr int kPairs = 2 * kStates;
constexpr int kParts = 6;  // in_proj, out_proj, x_proj twice, dt_weight twice

struct Part {
  const float* source;
  float* values;           // reordered; null: the source stays as it is
  __nv_bfloat16* rounded;  // null: not wanted
  int64_t rows, columns;
};
struct Parts {
  Part part[kParts];
  int64_t dt_rank;
};

// Row of x_proj that becomes row `row` of the reordered one; -1: zeros.
__host__ __device__ constexpr int64_t source_row(int64_t row, int64_t dt_rank) {
  if (row < kPairs) return dt_rank + row;
  return row < kPairs + dt_rank ? row - kPairs : -1;
}

__global__ void __launch_bounds__(kBlock) block_weights_kernel(const __grid_constant__ Parts parts) {
  int64_t i = int64_t{blockIdx.x} * kBlock + threadIdx.x;
#pragma unroll
  for (int p = 0; p < kParts; ++p) {
    const Part& part = parts.part[p];
    const int64_t count = part.rows * part.columns;
    if (i >= 0 && i < count) {
      float value;
      if (part.values != nullptr) {
        const int64_t row = source_row(i / part.columns, parts.dt_rank);
        value = row >= 0 ? part.source[row * part.columns + i % part.columns] : 0.0f;
        part.values[i] = value;
      } else {
        value = part.source[i];
      }
      if (part.rounded != nullptr) part.rounded[i] = from_float<__nv_bfloat16>(value);
    }
    i -= count;
  }
}

__global__ void __launch_bounds__(kBlock)
    block_restore_kernel(const float* __restrict__ gradient, float* __restrict__ x_proj, int64_t d_inner,
                         int64_t dt_rank) {
  const int64_t i = int64_t{blockIdx.x} * kBlock + threadIdx.x;
  if (i >= (kPairs + dt_rank) * d_inner) return;
  x_proj[source_row(i / d_inner, dt_rank) * d_inner + i % d_inner] = gradient[i];
}

}  // namespace

Weights::Weights(const MambaBlockArgs& args, Stream stream)
    : reordered_(stream, 2 * proj_width_of(args) * args.d_inner), rounded_(stream, rounded_matrices(args) * 2) {
  Parts parts{{}, args.dt_rank};
  auto* rounded = reinterpret_cast<__nv_bfloat16*>(rounded_.get());
  int64_t count = 0;
  int index = 0;
  const auto add = [&](const void* source, float* values, int64_t rows, int64_t columns) {
    const bool rounds = args.dtype != DType::f32;
    parts.part[index++] = {static_cast<const float*>(source), values, rounds ? rounded : nullptr, rows, columns};
    const Matrix matrix{values != nullptr ? values : source, rounds ? static_cast<const void*>(rounded) : nullptr};
    if (rounds) rounded += padded_matrix(rows * columns);
    count += rows * columns;
    return matrix;
  };
  const int64_t width = proj_width_of(args), d_inner = args.d_inner;
  in_proj = add(args.in_proj, nullptr, 2 * d_inner, args.channels);
  out_proj = add(args.out_proj, nullptr, args.channels, d_inner);
  for (int p = 0; p < 2; ++p) {
    x_proj[p] = add(args.direction[p].x_proj, reordered_.get() + p * width * d_inner, width, d_inner);
    dt[p] = add(args.direction[p].dt_weight, nullptr, d_inner, args.dt_rank);
  }
  block_weights_kernel<<<static_cast<unsigned>(ceil_div(count, kBlock)), kBlock, 0, raw(stream)>>>(parts);
  PM_CHECK_LAUNCH("block_weights");
}

void restore_x_proj(const MambaBlockArgs& args, const float* gradient, void* x_proj, Stream stream) {
  const int64_t count = (kPairs + args.dt_rank) * args.d_inner;
  block_restore_kernel<<<static_cast<unsigned>(ceil_div(count, kBlock)), kBlock, 0, raw(stream)>>>(
      gradient, static_cast<float*>(x_proj), args.d_inner, args.dt_rank);
  PM_CHECK_LAUNCH("block_restore");
}

}  // namespace pm::cuda::block
