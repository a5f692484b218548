// What Stream::handle points to, and scratch memory in stream order.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

#include "engine/core/backend.h"

namespace pm::cuda {

class Matmul;

constexpr int64_t kTickets = 2048;

struct StreamState {
  cudaStream_t stream = nullptr;
  Matmul* matmul = nullptr;  // cuda/core/matmul.h
  bool tf32 = false;         // float32 products may round their factors to TF32
  int sm_count = 0;
  // kTickets counters on the device, zero between kernels. Blocks of a kernel that finish a sum together count themselves here,
  // and the last one puts back the zero: kernels of a stream run one after the other.
  unsigned* tickets = nullptr;
};

inline const StreamState& state(Stream stream) { return *static_cast<const StreamState*>(stream.handle); }
inline cudaStream_t raw(Stream stream) { return state(stream).stream; }

// Uninitialised device memory for the kernels launched while it lives; freed in stream order.
template <typename T>
class Scratch {
 public:
  Scratch(Stream stream, int64_t count)
      : memory_(stream.memory),
        bytes_(static_cast<size_t>(count) * sizeof(T)),
        pointer_(static_cast<T*>(memory_->allocate(bytes_))) {}
  ~Scratch() { memory_->deallocate(pointer_, bytes_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  T* get() const { return pointer_; }
  size_t bytes() const { return bytes_; }

 private:
  Backend* memory_;
  size_t bytes_;
  T* pointer_;
};

}  // namespace pm::cuda
