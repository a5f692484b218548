#include "cuda/core/check.h"

#include "engine/core/check.h"

namespace pm::cuda {

void throw_cuda_error(cudaError_t status, const char* what, const char* file, int line) {
  throw CudaError(fmt::format("CUDA: {} ({}) from {} at {}:{}", cudaGetErrorString(status), cudaGetErrorName(status),
                              what, file, line));
}

void throw_cublas_error(cublasStatus_t status, const char* what, const char* file, int line) {
  throw CudaError(fmt::format("cuBLAS: {} from {} at {}:{}", cublasLtGetStatusString(status), what, file, line));
}

void check_launch(const char* kernel, const char* file, int line) {
  cudaError_t status = cudaGetLastError();
#ifdef PM_SYNC_DEBUG
  if (status == cudaSuccess) status = cudaDeviceSynchronize();
#endif
  if (status != cudaSuccess) throw_cuda_error(status, kernel, file, line);
}

}  // namespace pm::cuda
