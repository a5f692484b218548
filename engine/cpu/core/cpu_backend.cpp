#include "engine/cpu/core/cpu_backend.h"

#include <omp.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "engine/core/check.h"

namespace pm::cpu {
namespace {

constexpr size_t kAlignment = 256;

class RepeatedWork final : public CapturedWork {
 public:
  explicit RepeatedWork(std::function<void()> work) : work_(std::move(work)) {}
  void replay() override { work_(); }

 private:
  std::function<void()> work_;
};

class CpuBackend final : public Backend {
 public:
  Device device() const override { return Device::cpu(); }
  std::string description() const override { return fmt::format("CPU, {} threads", omp_get_max_threads()); }

  void* allocate(size_t bytes) override {
    if (bytes == 0) return nullptr;
    const size_t rounded = (bytes + kAlignment - 1) / kAlignment * kAlignment;
    // Linux grants more than there is and kills the process later, so compare with the physical memory first.
    const int64_t wanted = current_ + static_cast<int64_t>(bytes);
    void* pointer = rounded < bytes || wanted > total_bytes() ? nullptr : std::aligned_alloc(kAlignment, rounded);
    PM_CHECK(pointer != nullptr, OutOfMemoryError,
             "out of host memory: {} bytes requested, {} in use by tensors, {} in the machine", bytes, current_.load(),
             total_bytes());
    current_ += static_cast<int64_t>(bytes);
    ++allocations_;
    int64_t peak = peak_;
    while (peak < current_ && !peak_.compare_exchange_weak(peak, current_)) {
    }
    return pointer;
  }

  void deallocate(void* pointer, size_t bytes) noexcept override {
    if (pointer == nullptr) return;
    std::free(pointer);
    current_ -= static_cast<int64_t>(bytes);
    --allocations_;
  }

  void copy_from_host(void* destination, const void* host, size_t bytes) override {
    std::memcpy(destination, host, bytes);
  }
  void copy_to_host(void* host, const void* source, size_t bytes) override { std::memcpy(host, source, bytes); }
  void copy_within(void* destination, const void* source, size_t bytes) override {
    std::memcpy(destination, source, bytes);
  }
  void fill_bytes(void* destination, uint8_t value, size_t bytes) override { std::memset(destination, value, bytes); }
  void synchronize() override {}
  double time_ms(const std::function<void()>& work) override {
    const auto begin = std::chrono::steady_clock::now();
    work();
    return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin).count();
  }
  std::unique_ptr<CapturedWork> capture(const std::function<void()>& work) override {
    return std::make_unique<RepeatedWork>(work);
  }
  Stream stream() override { return {nullptr, this}; }
  MemoryStats memory() const override { return {current_, peak_, allocations_}; }
  void reset_peak() override { peak_ = current_.load(); }
  int64_t total_bytes() const override {
    return static_cast<int64_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<int64_t>(sysconf(_SC_PAGE_SIZE));
  }

 private:
  std::atomic<int64_t> current_{0}, peak_{0}, allocations_{0};
};

}  // namespace

std::shared_ptr<Backend> make_backend() { return std::make_shared<CpuBackend>(); }

}  // namespace pm::cpu
