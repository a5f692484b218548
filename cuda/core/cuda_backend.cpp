#include "cuda/core/cuda_backend.h"

#include <algorithm>
#include <cstdio>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "cuda/core/check.h"
#include "cuda/core/matmul.h"
#include "cuda/core/stream.h"
#include "engine/core/block_arena.h"
#include "engine/core/check.h"

namespace pm::cuda {
namespace {

// cuBLASLt has this much device memory for its own use, so that it never allocates inside a step.
constexpr size_t kBlasWorkspace = size_t{32} << 20;

void log_failure(cudaError_t status, const char* what) noexcept {
  if (status != cudaSuccess) std::fprintf(stderr, "warning: %s: %s\n", what, cudaGetErrorString(status));
}

// Memory of a captured graph comes from segments of at least this size, one of them large enough for nearly everything.
constexpr size_t kArenaSegment = size_t{32} << 20;

class CudaGraph final : public CapturedWork {
 public:
  // `release` gives back the memory of the graph, which no longer runs then.
  CudaGraph(cudaStream_t stream, cudaGraphExec_t graph, std::function<void()> release)
      : stream_(stream), graph_(graph), release_(std::move(release)) {}
  ~CudaGraph() override {
    log_failure(cudaStreamSynchronize(stream_), "cudaStreamSynchronize");
    log_failure(cudaGraphExecDestroy(graph_), "cudaGraphExecDestroy");
    release_();
  }
  CudaGraph(const CudaGraph&) = delete;
  CudaGraph& operator=(const CudaGraph&) = delete;
  void replay() override { PM_CUDA_CHECK(cudaGraphLaunch(graph_, stream_)); }

 private:
  cudaStream_t stream_;
  cudaGraphExec_t graph_;
  std::function<void()> release_;
};

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

    PM_CUBLAS_CHECK(cublasLtCreate(&blas_));
    PM_CUDA_CHECK(cudaMallocFromPoolAsync(&blas_workspace_, kBlasWorkspace, pool_, state_.stream));
    constexpr size_t kTicketBytes = kTickets * sizeof(unsigned);
    void* tickets = nullptr;
    PM_CUDA_CHECK(cudaMallocFromPoolAsync(&tickets, kTicketBytes, pool_, state_.stream));
    PM_CUDA_CHECK(cudaMemsetAsync(tickets, 0, kTicketBytes, state_.stream));
    state_.tickets = static_cast<unsigned*>(tickets);
    matmul_ = std::make_unique<Matmul>(blas_, blas_workspace_, kBlasWorkspace);
    state_.matmul = matmul_.get();
  }

  ~CudaBackend() override {
    log_failure(cudaSetDevice(index_), "cudaSetDevice");
    matmul_.reset();
    if (cublasLtDestroy(blas_) != CUBLAS_STATUS_SUCCESS) std::fprintf(stderr, "warning: cublasLtDestroy failed\n");
    log_failure(cudaFreeAsync(state_.tickets, state_.stream), "cudaFreeAsync");
    log_failure(cudaFreeAsync(blas_workspace_, state_.stream), "cudaFreeAsync");
    log_failure(cudaStreamSynchronize(state_.stream), "cudaStreamSynchronize");
    arenas_.clear();
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
    if (capturing_ != nullptr) {
      pointer = capturing_->allocate(bytes);
    } else {
      const cudaError_t status = cudaMallocFromPoolAsync(&pointer, bytes, pool_, state_.stream);
      if (status == cudaErrorMemoryAllocation) throw_out_of_memory(bytes);
      PM_CUDA_CHECK(status);
      add_current(static_cast<int64_t>(bytes));
    }
    ++allocations_;
    return pointer;
  }

  void deallocate(void* pointer, size_t bytes) noexcept override {
    if (pointer == nullptr) return;
    --allocations_;
    const auto arena =
        std::find_if(arenas_.begin(), arenas_.end(), [&](const auto& a) { return a.blocks->owns(pointer); });
    if (arena != arenas_.end()) {
      arena->blocks->deallocate(pointer);
      if (arena->retired && arena->blocks->live_blocks() == 0) arenas_.erase(arena);
    } else if (capturing_ != nullptr) {
      freed_in_capture_.emplace_back(pointer, bytes);  // a free would become part of the graph
    } else {
      free_now(pointer, bytes);
    }
  }

  void copy_from_host(void* destination, const void* host, size_t bytes) override {
    check_not_capturing("copy from the host");
    PM_CUDA_CHECK(cudaMemcpyAsync(destination, host, bytes, cudaMemcpyHostToDevice, state_.stream));
    // The caller may free or change pageable host memory as soon as this returns.
    PM_CUDA_CHECK(cudaStreamSynchronize(state_.stream));
  }
  void copy_to_host(void* host, const void* source, size_t bytes) override {
    check_not_capturing("copy to the host");
    PM_CUDA_CHECK(cudaMemcpyAsync(host, source, bytes, cudaMemcpyDeviceToHost, state_.stream));
    PM_CUDA_CHECK(cudaStreamSynchronize(state_.stream));
  }
  void copy_within(void* destination, const void* source, size_t bytes) override {
    PM_CUDA_CHECK(cudaMemcpyAsync(destination, source, bytes, cudaMemcpyDeviceToDevice, state_.stream));
  }
  void fill_bytes(void* destination, uint8_t value, size_t bytes) override {
    PM_CUDA_CHECK(cudaMemsetAsync(destination, value, bytes, state_.stream));
  }
  void synchronize() override {
    check_not_capturing("wait for the device");
    PM_CUDA_CHECK(cudaStreamSynchronize(state_.stream));
  }
  double time_ms(const std::function<void()>& work) override {
    check_not_capturing("measure time");
    PM_CUDA_CHECK(cudaEventRecord(begin_, state_.stream));
    work();
    PM_CUDA_CHECK(cudaEventRecord(end_, state_.stream));
    PM_CUDA_CHECK(cudaEventSynchronize(end_));
    float elapsed = 0.0f;
    PM_CUDA_CHECK(cudaEventElapsedTime(&elapsed, begin_, end_));
    return elapsed;
  }
  std::unique_ptr<CapturedWork> capture(const std::function<void()>& work) override {
#ifdef PM_SYNC_DEBUG
    throw Error("a build with PM_SYNC_DEBUG waits after each launch and cannot capture");
#endif
    check_not_capturing("start another capture");
    // Memory that the pool keeps is of no use to the graph: hand it back, so that both fit.
    PM_CUDA_CHECK(cudaStreamSynchronize(state_.stream));
    PM_CUDA_CHECK(cudaMemPoolTrimTo(pool_, 0));
    // What the run before needed at its peak is nearly what the graph will need; more comes in segments of its own.
    const auto needed = static_cast<size_t>(std::max<int64_t>(peak_ - current_, 0));
    arenas_.push_back({std::make_unique<BlockArena>(
                           BlockArena::Source{[this](size_t bytes) { return acquire_segment(bytes); },
                                              [this](void* pointer, size_t bytes) { release_segment(pointer, bytes); }},
                           needed, kArenaSegment),
                       false});
    BlockArena* const blocks = arenas_.back().blocks.get();
    const auto retire = [this, blocks] { retire_arena(blocks); };

    cudaGraph_t graph = nullptr;
    try {
      graph = record_graph(work, blocks);
    } catch (...) {
      retire();
      throw;
    }
    cudaGraphExec_t executable = nullptr;
    const cudaError_t status = cudaGraphInstantiateWithFlags(&executable, graph, 0);
    log_failure(cudaGraphDestroy(graph), "cudaGraphDestroy");
    if (status != cudaSuccess) retire();
    PM_CUDA_CHECK(status);
    return std::make_unique<CudaGraph>(state_.stream, executable, retire);
  }
  Stream stream() override { return {&state_, this}; }
  MemoryStats memory() const override { return {current_, peak_, allocations_}; }
  void reset_peak() override { peak_ = current_; }
  int64_t total_bytes() const override { return total_; }
  void allow_tf32(bool allowed) override { state_.tf32 = allowed; }

 private:
  // Memory of one captured graph. Retired once the graph is gone: it stays until its last tensor is.
  struct Arena {
    std::unique_ptr<BlockArena> blocks;
    bool retired;
  };

  void add_current(int64_t bytes) {
    current_ += bytes;
    peak_ = std::max(peak_, current_);
  }
  void free_now(void* pointer, size_t bytes) noexcept {
    log_failure(cudaFreeAsync(pointer, state_.stream), "cudaFreeAsync");
    current_ -= static_cast<int64_t>(bytes);
  }

  void check_not_capturing(const char* what) const {
    PM_CHECK(capturing_ == nullptr, Error, "cannot {} while work is being captured on {}", what, device().str());
  }

  // The graph of what `work` enqueues, with memory from `blocks`. Leaves the stream as it was, also when it throws.
  cudaGraph_t record_graph(const std::function<void()>& work, BlockArena* blocks) {
    // Relaxed: segments are allocated meanwhile, which other modes forbid.
    PM_CUDA_CHECK(cudaStreamBeginCapture(state_.stream, cudaStreamCaptureModeRelaxed));
    capturing_ = blocks;
    const auto finish = [&](cudaGraph_t* graph) {
      capturing_ = nullptr;
      const cudaError_t status = cudaStreamEndCapture(state_.stream, graph);
      for (const auto& [pointer, bytes] : freed_in_capture_) free_now(pointer, bytes);
      freed_in_capture_.clear();
      return status;
    };
    cudaGraph_t graph = nullptr;
    try {
      work();
    } catch (...) {
      log_failure(finish(&graph), "cudaStreamEndCapture");
      if (graph != nullptr) log_failure(cudaGraphDestroy(graph), "cudaGraphDestroy");
      static_cast<void>(cudaGetLastError());
      throw;
    }
    PM_CUDA_CHECK(finish(&graph));
    return graph;
  }

  void* acquire_segment(size_t bytes) {
    void* pointer = nullptr;
    const cudaError_t status = cudaMalloc(&pointer, bytes);
    if (status == cudaErrorMemoryAllocation) throw_out_of_memory(bytes);
    PM_CUDA_CHECK(status);
    add_current(static_cast<int64_t>(bytes));
    return pointer;
  }
  void release_segment(void* pointer, size_t bytes) noexcept {
    log_failure(cudaFree(pointer), "cudaFree");
    current_ -= static_cast<int64_t>(bytes);
  }
  void retire_arena(const BlockArena* blocks) noexcept {
    const auto arena =
        std::find_if(arenas_.begin(), arenas_.end(), [&](const Arena& a) { return a.blocks.get() == blocks; });
    arena->retired = true;
    if (blocks->live_blocks() == 0) arenas_.erase(arena);
  }

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
  cublasLtHandle_t blas_ = nullptr;
  void* blas_workspace_ = nullptr;
  std::unique_ptr<Matmul> matmul_;
  int64_t current_ = 0, peak_ = 0, allocations_ = 0;
  std::vector<Arena> arenas_;
  BlockArena* capturing_ = nullptr;                         // of the graph that is being captured
  std::vector<std::pair<void*, size_t>> freed_in_capture_;  // from the pool: freed when the capture ends
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
  PM_CHECK(index >= 0 && index < count, DeviceError, "there is no device cuda:{}: {} CUDA device(s) found", index,
           count);
  return std::make_shared<CudaBackend>(index);
}

}  // namespace pm::cuda
