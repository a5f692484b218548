// Checks of CUDA calls and launches. Every call goes through one of these.
#pragma once
#include <cublasLt.h>
#include <cuda_runtime.h>

namespace pm::cuda {

[[noreturn]] void throw_cuda_error(cudaError_t status, const char* what, const char* file, int line);
[[noreturn]] void throw_cublas_error(cublasStatus_t status, const char* what, const char* file, int line);
// Throws CudaError when the launch just made was refused; under PM_SYNC_DEBUG also waits and reports what ran wrong.
void check_launch(const char* kernel, const char* file, int line);

}  // namespace pm::cuda

#define PM_CUDA_CHECK(call)                                                                           \
  do {                                                                                                \
    const cudaError_t pm_status = (call);                                                             \
    if (pm_status != cudaSuccess) ::pm::cuda::throw_cuda_error(pm_status, #call, __FILE__, __LINE__); \
  } while (false)

#define PM_CUBLAS_CHECK(call)                                                                                     \
  do {                                                                                                            \
    const cublasStatus_t pm_status = (call);                                                                      \
    if (pm_status != CUBLAS_STATUS_SUCCESS) ::pm::cuda::throw_cublas_error(pm_status, #call, __FILE__, __LINE__); \
  } while (false)

#define PM_CHECK_LAUNCH(kernel) ::pm::cuda::check_launch(kernel, __FILE__, __LINE__)
