// A device that counts memory and has none: whatever runs on it allocates and frees as it would on `device` and computes nothing
// (engine/ops/dispatch.h), so that the peak of a training step is known from its shapes alone, without the device.
#pragma once
#include "engine/core/backend.h"

namespace pm {

class CountingBackend final : public Backend {
 public:
  explicit CountingBackend(Device device) : device_(device) {}

  Device device() const override { return device_; }
  std::string description() const override { return "memory counted for " + device_.str(); }
  // Not to be read or written; no limit.
  void* allocate(size_t bytes) override;
  void deallocate(void* pointer, size_t bytes) noexcept override;
  void copy_from_host(void*, const void*, size_t) override {}
  void copy_to_host(void* host, const void* source, size_t bytes) override;  // throws Error: there are no values
  void copy_within(void*, const void*, size_t) override {}
  void fill_bytes(void*, uint8_t, size_t) override {}
  void synchronize() override {}
  double time_ms(const std::function<void()>& work) override;
  std::unique_ptr<CapturedWork> capture(const std::function<void()>& work) override;  // throws Error
  Stream stream() override { return {nullptr, this}; }
  MemoryStats memory() const override { return stats_; }
  void reset_peak() override { stats_.peak_bytes = stats_.current_bytes; }
  int64_t total_bytes() const override { return INT64_MAX; }
  bool counts_only() const override { return true; }

 private:
  Device device_;
  MemoryStats stats_;
};

}  // namespace pm
