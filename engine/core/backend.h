// What a device must offer beneath tensors: memory and copies, all in the order of one stream.
#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "engine/core/device.h"

namespace pm {

class Backend;

// Passed by value to every CUDA launcher. `handle` is opaque outside cuda/ (see cuda/core/stream.h);
// `memory` serves scratch buffers in stream order.
struct Stream {
  void* handle = nullptr;
  Backend* memory = nullptr;
};

struct MemoryStats {
  int64_t current_bytes = 0;  // handed out now
  int64_t peak_bytes = 0;     // highest current_bytes since the last reset_peak()
  int64_t allocations = 0;    // number of live allocations
};

// Work that can be enqueued again and again; made by Backend::capture, which it must not outlive.
class CapturedWork {
 public:
  virtual ~CapturedWork() = default;
  virtual void replay() = 0;
};

class Backend {
 public:
  virtual ~Backend() = default;
  virtual Device device() const = 0;
  virtual std::string description() const = 0;  // "NVIDIA H200, 139 GiB" or "CPU, 2 threads"
  // Uninitialised memory, aligned to 256 bytes, nullptr for zero bytes. Throws OutOfMemoryError naming requested, current and free.
  virtual void* allocate(size_t bytes) = 0;
  virtual void deallocate(void* pointer, size_t bytes) noexcept = 0;
  virtual void copy_from_host(void* destination, const void* host, size_t bytes) = 0;
  virtual void copy_to_host(void* host, const void* source, size_t bytes) = 0;  // waits until the bytes are there
  virtual void copy_within(void* destination, const void* source, size_t bytes) = 0;
  virtual void fill_bytes(void* destination, uint8_t value, size_t bytes) = 0;
  virtual void synchronize() = 0;
  // Milliseconds that the device spends on what `work` enqueues (CPU: wall clock). Waits for it.
  virtual double time_ms(const std::function<void()>& work) = 0;
  // Captures what `work` enqueues without running it; each replay() then costs the host one call. The device repeats the same
  // kernels with the same arguments on the same memory, so what changes from one replay to the next must lie in tensors made
  // before, which are overwritten in place. Tensors that `work` makes and that are alive afterwards hold its results after a
  // replay(). `work` may not wait for the device or copy from the host (throws Error), and has to have run once before, at the
  // same shapes. A device that cannot capture calls `work` at each replay().
  virtual std::unique_ptr<CapturedWork> capture(const std::function<void()>& work) = 0;
  virtual Stream stream() = 0;
  virtual MemoryStats memory() const = 0;
  virtual void reset_peak() = 0;
  virtual int64_t total_bytes() const = 0;  // memory of the device
  // Whether float32 matrix products may round their factors to TF32 (10 bits of mantissa). Off at first; the CPU ignores it.
  virtual void allow_tf32(bool) {}
  // Whether memory is only counted (engine/core/counting_backend.h): operators then check, allocate and compute nothing.
  virtual bool counts_only() const { return false; }
};

}  // namespace pm
