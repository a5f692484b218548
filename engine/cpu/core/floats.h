// Uninitialised values that live as long as a call, from a backend's memory, so that they count as used and are refused where
// there is too little; or from the heap where no backend is given.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <utility>

#include "engine/core/backend.h"

namespace pm::cpu {

class Floats {
 public:
  Floats() = default;
  Floats(Backend* memory, int64_t count) : memory_(memory), bytes_(static_cast<size_t>(count) * sizeof(float)) {
    data_ = static_cast<float*>(memory != nullptr ? memory->allocate(bytes_) : std::malloc(bytes_));
    if (data_ == nullptr && bytes_ > 0) throw std::bad_alloc();
  }
  ~Floats() { memory_ != nullptr ? memory_->deallocate(data_, bytes_) : std::free(data_); }
  Floats(Floats&& other) noexcept { swap(other); }
  Floats& operator=(Floats&& other) noexcept {
    swap(other);
    return *this;
  }

  float* get() const { return data_; }

 private:
  void swap(Floats& other) noexcept {
    std::swap(memory_, other.memory_);
    std::swap(bytes_, other.bytes_);
    std::swap(data_, other.data_);
  }
  Backend* memory_ = nullptr;
  size_t bytes_ = 0;
  float* data_ = nullptr;
};

}  // namespace pm::cpu
