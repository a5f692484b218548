#include "cuda/core/matmul.h"

#include "engine/core/check.h"

namespace pm::cuda {
namespace {

constexpr size_t kMostPlans = 4096;  // slides of ever new sizes: then start over

uint32_t alignment_of(const void* pointer) {
  const auto address = reinterpret_cast<uintptr_t>(pointer);
  uint32_t alignment = 256;
  while (address % alignment != 0) alignment /= 2;
  return alignment;
}

cublasLtMatrixLayout_t make_layout(cudaDataType_t type, int64_t rows, int64_t columns, int64_t ld, int64_t batch,
                                   int64_t stride) {
  cublasLtMatrixLayout_t layout = nullptr;
  PM_CUBLAS_CHECK(
      cublasLtMatrixLayoutCreate(&layout, type, static_cast<uint64_t>(rows), static_cast<uint64_t>(columns), ld));
  if (batch > 1) {
    const int32_t count = static_cast<int32_t>(batch);
    PM_CUBLAS_CHECK(
        cublasLtMatrixLayoutSetAttribute(layout, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &count, sizeof(count)));
    PM_CUBLAS_CHECK(
        cublasLtMatrixLayoutSetAttribute(layout, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &stride, sizeof(stride)));
  }
  return layout;
}

cublasComputeType_t compute_type(const MatmulShape& shape) {
  if (shape.in != CUDA_R_32F) return CUBLAS_COMPUTE_32F;
  return shape.tf32 ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F_PEDANTIC;
}

template <typename T>
void prefer(cublasLtMatmulPreference_t preference, cublasLtMatmulPreferenceAttributes_t attribute, T value) {
  PM_CUBLAS_CHECK(cublasLtMatmulPreferenceSetAttribute(preference, attribute, &value, sizeof(value)));
}

}  // namespace

Matmul::Matmul(cublasLtHandle_t handle, void* workspace, size_t workspace_bytes)
    : handle_(handle), workspace_(workspace), workspace_bytes_(workspace_bytes) {}

Matmul::~Matmul() { clear(); }

void Matmul::clear() noexcept {
  for (auto& [key, plan] : plans_) {  // freeing host memory: nothing that could fail
    static_cast<void>(cublasLtMatmulDescDestroy(plan.operation));
    static_cast<void>(cublasLtMatrixLayoutDestroy(plan.a));
    static_cast<void>(cublasLtMatrixLayoutDestroy(plan.b));
    static_cast<void>(cublasLtMatrixLayoutDestroy(plan.c));
  }
  plans_.clear();
}

Matmul::Plan Matmul::make_plan(const MatmulShape& s, const Alignments& alignments) const {
  Plan plan;
  PM_CUBLAS_CHECK(cublasLtMatmulDescCreate(&plan.operation, compute_type(s), CUDA_R_32F));
  PM_CUBLAS_CHECK(cublasLtMatmulDescSetAttribute(plan.operation, CUBLASLT_MATMUL_DESC_TRANSA, &s.op_a, sizeof(s.op_a)));
  PM_CUBLAS_CHECK(cublasLtMatmulDescSetAttribute(plan.operation, CUBLASLT_MATMUL_DESC_TRANSB, &s.op_b, sizeof(s.op_b)));
  const bool plain_a = s.op_a == CUBLAS_OP_N, plain_b = s.op_b == CUBLAS_OP_N;
  plan.a = make_layout(s.in, plain_a ? s.m : s.k, plain_a ? s.k : s.m, s.lda, s.batch, s.stride_a);
  plan.b = make_layout(s.in, plain_b ? s.k : s.n, plain_b ? s.n : s.k, s.ldb, s.batch, s.stride_b);
  plan.c = make_layout(s.out, s.m, s.n, s.ldc, s.batch, s.stride_c);
  cublasLtMatmulPreference_t preference = nullptr;
  PM_CUBLAS_CHECK(cublasLtMatmulPreferenceCreate(&preference));
  prefer(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, workspace_bytes_);
  prefer(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, alignments[0]);
  prefer(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, alignments[1]);
  prefer(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, alignments[2]);
  prefer(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, alignments[3]);
  // Split sums are added in float32 from the workspace, never in the type of the output.
  prefer(preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
         static_cast<uint32_t>(CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE));
  cublasLtMatmulHeuristicResult_t best{};
  int found = 0;
  const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(handle_, plan.operation, plan.a, plan.b, plan.c, plan.c,
                                                               preference, 1, &best, &found);
  static_cast<void>(cublasLtMatmulPreferenceDestroy(preference));
  PM_CUBLAS_CHECK(status);
  PM_CHECK(found > 0, CudaError, "cuBLASLt has no algorithm for a product of {} x {} x {}", s.m, s.n, s.k);
  plan.algorithm = best.algo;
  return plan;
}

void Matmul::run(const MatmulShape& shape, const void* a, const void* b, float beta, const void* c, void* d,
                 cudaStream_t stream) {
  const Alignments alignments{alignment_of(a), alignment_of(b), alignment_of(c), alignment_of(d)};
  const Key key(shape.key(), alignments);
  auto place = plans_.find(key);
  if (place == plans_.end()) {
    if (plans_.size() >= kMostPlans) clear();
    place = plans_.emplace(key, make_plan(shape, alignments)).first;
  }
  const Plan& plan = place->second;
  const float alpha = 1.0f;
  PM_CUBLAS_CHECK(cublasLtMatmul(handle_, plan.operation, &alpha, a, plan.a, b, plan.b, &beta, c, plan.c, d, plan.c,
                                 &plan.algorithm, workspace_, workspace_bytes_, stream));
}

}  // namespace pm::cuda
