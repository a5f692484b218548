// Matrix products by cuBLASLt, with the chosen algorithm remembered: choosing costs tens of microseconds of host time, more
// than most products of a slide's segment take on the GPU.
#pragma once
#include <cublasLt.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <tuple>

#include "cuda/core/check.h"

namespace pm::cuda {

// d = op(a) op(b) + beta c, column-major; `batch` products at the given strides (elements). a and b have type `in`, c and d
// type `out` and one layout.
struct MatmulShape {
  cublasOperation_t op_a, op_b;
  int64_t m, n, k, lda, ldb, ldc;
  cudaDataType_t in, out;
  int64_t stride_a = 0, stride_b = 0, stride_c = 0, batch = 1;
  bool tf32 = false;  // float32 factors rounded to TF32

  auto key() const {
    return std::tuple(op_a, op_b, m, n, k, lda, ldb, ldc, in, out, stride_a, stride_b, stride_c, batch, tf32);
  }
};

// One per stream: products run one after the other in its order and share one workspace.
// Sums are float32 (split sums too), and the same shape takes the same algorithm, so the bits are the same in every run.
class Matmul {
 public:
  Matmul(cublasLtHandle_t handle, void* workspace, size_t workspace_bytes);
  ~Matmul();
  Matmul(const Matmul&) = delete;
  Matmul& operator=(const Matmul&) = delete;

  // c may be d itself, or not overlap it; with beta = 0 it is not read.
  // Throws CudaError when cuBLASLt has no algorithm or refuses the launch.
  void run(const MatmulShape& shape, const void* a, const void* b, float beta, const void* c, void* d,
           cudaStream_t stream);

 private:
  struct Plan {
    cublasLtMatmulDesc_t operation = nullptr;
    cublasLtMatrixLayout_t a = nullptr, b = nullptr, c = nullptr;  // c: of d too
    cublasLtMatmulAlgo_t algorithm{};
  };
  // The addresses count by what they are multiples of: 16-byte loads need aligned ones.
  using Alignments = std::array<uint32_t, 4>;  // of a, b, c, d
  using Key = std::tuple<decltype(MatmulShape().key()), Alignments>;

  Plan make_plan(const MatmulShape& shape, const Alignments& alignments) const;
  void clear() noexcept;

  cublasLtHandle_t handle_;
  void* workspace_;
  size_t workspace_bytes_;
  std::map<Key, Plan> plans_;
};

}  // namespace pm::cuda
