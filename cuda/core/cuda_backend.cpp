#include "cuda/core/cuda_backend.h"

#include <algorithm>
#include <atomic>
#include <cstdio>

#include "cuda/core/check.h"
#include "cuda/core/stream.h"
#include "engine/core/check.h"

namespace pm::cuda {
namespace {

// cuBLAS keeps this much device memory for its own use, so that it never allocates inside a step.
constexpr size_t kBlasWorkspace = size_t{32} << 20;

void log_failure(cudaError_t status, const char* what) noexcept {
  if (status != cudaSuccess) std::fprintf(stderr, "warning: %s: %s\n", what, cudaGetErrorString(status));
}

class CudaBackend final : public Backend {
 public:
  explicit CudaBackend(int index) : index_(index) {
    PM_CUDA_CHECK(cudaSetDevice(index));
    cudaDeviceProp properties{};
    PM_CUDA_CHECK(cudaGetDeviceProperties(&properties, index));
    name_ = properties.name;
    total_ = static_cast<int64_t>(properties.totalGlobalMem);
    state_.sm_count = properties.multiProcessorCount;
    PM_CUDA_CHECK(cudaStreamCreateWithFlags(&state_.stream, cudaStreamNonBlocking));
    PM_CUDA_CHECK(cudaEventCreate(&begin_));
    PM_CUDA_CHECK(cudaEventCreate(&end_));

    cudaMemPoolProps pool_properties{};
    pool_properties.allocType = cudaMemAllocationTypePinned;
    pool_properties.location.type = cudaMemLocationTypeDevice;
    pool_properties.location.id = index;
    PM_CUDA_CHECK(cudaMemPoolCreate(&pool_, &pool_properties));
    uint64_t keep_all = UINT64_MAX;  // freed memory stays in the pool: no driver calls in a steady step
    PM_CUDA_CHECK(cudaMemPoolSetAttribute(pool_, cudaMemPoolAttrReleaseThreshold, &keep_all));

    PM_CUBLAS_CHECK(cublasCreate(&state_.blas));
    PM_CUBLAS_CHECK(cublasSetStream(state_.blas, state_.stream));
    PM_CUDA_CHECK(cudaMallocFromPoolAsync(&blas_workspace_, kBlasWorkspace, pool_, state_.stream));
    PM_CUBLAS_CHECK(cublasSetWorkspace(state_.blas, blas_workspace_, kBlasWorkspace));
    PM_CUBLAS_CHECK(cublasSetMathMode(state_.blas, CUBLAS_PEDANTIC_MATH));  // float32 products stay float32
    PM_CUBLAS_CHECK(cublasSetAtomicsMode(state_.blas, CUBLAS_ATOMICS_NOT_ALLOWED));
  }

  ~CudaBackend() override {
    log_failure(cudaSetDevice(index_), "cudaSetDevice");
    if (cublasDestroy(state_.blas) != CUBLAS_STATUS_SUCCESS) std::fprintf(stderr, "warning: cublasDestroy failed\n");
    log_failure(cudaFreeAsync(blas_workspace_, state_.stream), "cudaFreeAsync");
    log_failure(cudaStreamSynchronize(state_.stream), "cudaStreamSynchronize");
    log_failure(cudaMemPoolDestroy(pool_), "cudaMemPoolDestroy");
    log_failure(cudaEventDestroy(begin_), "cudaEventDestroy");
    log_failure(cudaEventDestroy(end_), "cudaEventDestroy");
    log_failure(cudaStreamDestroy(state_.stream), "cudaStreamDestroy");
  }
  CudaBackend(const CudaBackend&) = delete;
  CudaBackend& operator=(const CudaBackend&) = delete;

  Device device() const override { return Device::cuda(index_); }
  std::string description() const override { return fmt::format("{}, {} GiB", name_, total_ >> 30); }

  void* allocate(size_t bytes) override {
    if (bytes == 0) return nullptr;
    void* pointer = nullptr;
    const cudaError_t status = cudaMallocFromPoolAsync(&pointer, bytes, pool_, state_.stream);
    if (status == cudaErrorMemoryAllocation) throw_out_of_memory(bytes);
    PM_CUDA_CHECK(status);
    current_ += static_cast<int64_t>(bytes);
    ++allocations_;
    peak_ = std::max(peak_, current_);
    return pointer;
  }

  void deallocate(void* pointer, size_t bytes) noexcept override {
    if (pointer == nullptr) return;
    log_failure(cudaFreeAsync(pointer, state_.stream), "cudaFreeAsync");
    current_ -= static_cast<int64_t>(bytes);
    --allocations_;
  }

  void copy_from_host(void* destination, const void* host, size_t bytes) override {
    PM_CUDA_CHECK(cudaMemcpyAsync(destination, host, bytes, cudaMemcpyHostToDevice, state_.stream));
    // The caller may free or change pageable host memory as soon as this returns.
    PM_CUDA_CHECK(cudaStreamSynchronize(state_.stream));
  }
  void copy_to_host(void* host, const void* source, size_t bytes) override {
    PM_CUDA_CHECK(cudaMemcpyAsync(host, source, bytes, cudaMemcpyDeviceToHost, state_.stream));
    PM_CUDA_CHECK(cudaStreamSynchronize(state_.stream));
  }
  void copy_within(void* destination, const void* source, size_t bytes) override {
    PM_CUDA_CHECK(cudaMemcpyAsync(destination, source, bytes, cudaMemcpyDeviceToDevice, state_.stream));
  }
  void fill_bytes(void* destination, uint8_t value, size_t bytes) override {
    PM_CUDA_CHECK(cudaMemsetAsync(destination, value, bytes, state_.stream));
  }
  void synchronize() override { PM_CUDA_CHECK(cudaStreamSynchronize(state_.stream)); }
  double time_ms(const std::function<void()>& work) override {
    PM_CUDA_CHECK(cudaEventRecord(begin_, state_.stream));
    work();
    PM_CUDA_CHECK(cudaEventRecord(end_, state_.stream));
    PM_CUDA_CHECK(cudaEventSynchronize(end_));
    float elapsed = 0.0f;
    PM_CUDA_CHECK(cudaEventElapsedTime(&elapsed, begin_, end_));
    return elapsed;
  }
  Stream stream() override { return {&state_, this}; }
  MemoryStats memory() const override { return {current_, peak_, allocations_}; }
  void reset_peak() override { peak_ = current_; }
  int64_t total_bytes() const override { return total_; }
  void allow_tf32(bool allowed) override {
    PM_CUBLAS_CHECK(cublasSetMathMode(state_.blas, allowed ? CUBLAS_TF32_TENSOR_OP_MATH : CUBLAS_PEDANTIC_MATH));
  }

 private:
  [[noreturn]] void throw_out_of_memory(size_t bytes) {
    static_cast<void>(cudaGetLastError());  // the refusal is not sticky; clear it so that the next call starts clean
    size_t free_bytes = 0, total_bytes = 0;
    PM_CUDA_CHECK(cudaMemGetInfo(&free_bytes, &total_bytes));
    throw OutOfMemoryError(fmt::format(
        "out of GPU memory on {} ({}): {} bytes requested, {} in use by tensors (peak {}), {} of {} free on the device",
        device().str(), name_, bytes, current_, peak_, free_bytes, total_bytes));
  }

  int index_;
  std::string name_;
  int64_t total_ = 0;
  StreamState state_;
  cudaEvent_t begin_ = nullptr, end_ = nullptr;
  cudaMemPool_t pool_ = nullptr;
  void* blas_workspace_ = nullptr;
  int64_t current_ = 0, peak_ = 0, allocations_ = 0;
};

}  // namespace

int device_count() {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) {
    static_cast<void>(cudaGetLastError());
    return 0;
  }
  return count;
}

std::shared_ptr<Backend> make_backend(int index) {
  const int count = device_count();
  PM_CHECK(index >= 0 && index < count, DeviceError, "there is no device cuda:{}: {} CUDA device(s) found", index, count);
  return std::make_shared<CudaBackend>(index);
}

}  // namespace pm::cuda
