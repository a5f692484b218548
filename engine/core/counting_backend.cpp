#include "engine/core/counting_backend.h"

#include <algorithm>

#include "engine/core/error.h"

namespace pm {

void* CountingBackend::allocate(size_t bytes) {
  if (bytes == 0) return nullptr;
  stats_.current_bytes += static_cast<int64_t>(bytes);
  stats_.peak_bytes = std::max(stats_.peak_bytes, stats_.current_bytes);
  ++stats_.allocations;
  static constexpr uintptr_t kNowhere = 4096;  // not null: null is what no bytes get
  return reinterpret_cast<void*>(kNowhere);
}

void CountingBackend::deallocate(void* pointer, size_t bytes) noexcept {
  if (pointer == nullptr) return;
  stats_.current_bytes -= static_cast<int64_t>(bytes);
  --stats_.allocations;
}

void CountingBackend::copy_to_host(void*, const void*, size_t) {
  throw Error("memory that is only counted holds no values to read");
}

double CountingBackend::time_ms(const std::function<void()>& work) {
  work();
  return 0.0;
}

std::unique_ptr<CapturedWork> CountingBackend::capture(const std::function<void()>&) {
  throw Error("where memory is only counted there is nothing to capture");
}

}  // namespace pm
