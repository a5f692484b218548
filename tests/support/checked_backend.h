// A Backend around another one that poisons every allocation with NaN bytes and guards both ends: an operator that leaves
// an output element unwritten yields NaN, one that writes outside is counted.
#pragma once
#include <atomic>
#include <memory>

#include "engine/core/backend.h"

namespace pm::test {

class CheckedBackend final : public Backend {
 public:
  static constexpr size_t kGuardBytes = 256;
  static constexpr uint8_t kPoison = 0xff;  // all ones is NaN in f32, bf16 and f64, and -1 in i64

  // Without `poison` the memory between the guard bands stays as it comes, for tools that watch for uninitialised reads.
  explicit CheckedBackend(std::shared_ptr<Backend> inner, bool poison = true)
      : inner_(std::move(inner)), poison_(poison) {}

  Device device() const override { return inner_->device(); }
  std::string description() const override { return inner_->description(); }
  void* allocate(size_t bytes) override;
  void deallocate(void* pointer, size_t bytes) noexcept override;
  void copy_from_host(void* d, const void* h, size_t n) override { inner_->copy_from_host(d, h, n); }
  void copy_to_host(void* h, const void* s, size_t n) override { inner_->copy_to_host(h, s, n); }
  void copy_within(void* d, const void* s, size_t n) override { inner_->copy_within(d, s, n); }
  void fill_bytes(void* d, uint8_t value, size_t n) override { inner_->fill_bytes(d, value, n); }
  void synchronize() override { inner_->synchronize(); }
  double time_ms(const std::function<void()>& work) override { return inner_->time_ms(work); }
  // Guard bands are read at every free, which a capture on a GPU forbids: tests capture under a backend of their own there.
  std::unique_ptr<CapturedWork> capture(const std::function<void()>& work) override;
  Stream stream() override { return {inner_->stream().handle, this}; }
  MemoryStats memory() const override { return inner_->memory(); }
  void reset_peak() override { inner_->reset_peak(); }
  int64_t total_bytes() const override { return inner_->total_bytes(); }

  // Allocations whose guard bands were found changed when they were freed.
  int64_t violations() const { return violations_; }

 private:
  std::shared_ptr<Backend> inner_;
  bool poison_;
  std::atomic<int64_t> violations_{0};
};

}  // namespace pm::test
