#include "tests/support/checked_backend.h"

#include <algorithm>
#include <array>
#include <cstddef>

#include "engine/core/check.h"

namespace pm::test {

void* CheckedBackend::allocate(size_t bytes) {
  if (bytes == 0) return nullptr;
  auto* block = static_cast<std::byte*>(inner_->allocate(bytes + 2 * kGuardBytes));
  if (poison_) {
    inner_->fill_bytes(block, kPoison, bytes + 2 * kGuardBytes);
  } else {
    inner_->fill_bytes(block, kPoison, kGuardBytes);
    inner_->fill_bytes(block + kGuardBytes + bytes, kPoison, kGuardBytes);
  }
  return block + kGuardBytes;
}

void CheckedBackend::deallocate(void* pointer, size_t bytes) noexcept {
  if (pointer == nullptr) return;
  auto* block = static_cast<std::byte*>(pointer) - kGuardBytes;
  try {
    std::array<uint8_t, 2 * kGuardBytes> guards{};
    inner_->copy_to_host(guards.data(), block, kGuardBytes);
    inner_->copy_to_host(guards.data() + kGuardBytes, block + kGuardBytes + bytes, kGuardBytes);
    if (std::any_of(guards.begin(), guards.end(), [](uint8_t byte) { return byte != kPoison; })) ++violations_;
  } catch (...) {
    ++violations_;  // a failed device cannot vouch for its memory
  }
  inner_->deallocate(block, bytes + 2 * kGuardBytes);
}

std::unique_ptr<CapturedWork> CheckedBackend::capture(const std::function<void()>& work) {
  PM_CHECK(device().is_cpu(), Error, "memory with guard bands cannot be used in a capture on {}", device().str());
  return inner_->capture(work);
}

}  // namespace pm::test
