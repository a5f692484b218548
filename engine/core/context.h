// One Context is created in main and passed down: device, stream, memory, random state, gradient mode. No globals.
#pragma once
#include <atomic>
#include <memory>

#include "engine/core/backend.h"
#include "engine/core/rng.h"

namespace pm {

class Context {
 public:
  explicit Context(std::shared_ptr<Backend> backend, uint64_t seed = 0);
  Context(const Context&) = delete;
  Context& operator=(const Context&) = delete;

  Device device() const { return backend_->device(); }
  Stream stream() { return backend_->stream(); }
  Backend& backend() { return *backend_; }
  const std::shared_ptr<Backend>& shared_backend() const { return backend_; }
  Rng& rng() { return rng_; }
  void synchronize() { backend_->synchronize(); }

  // Whether operators on Variables record the graph (see autograd/core/variable.h: NoGrad).
  bool grad_enabled() const { return grad_enabled_; }
  void set_grad_enabled(bool enabled) { grad_enabled_ = enabled; }
  // Position of the next graph node in recording order.
  int64_t next_node_order() { return node_order_++; }
  // Number of graph nodes alive that were recorded under this context: the tests' leak counter.
  const std::shared_ptr<std::atomic<int64_t>>& live_nodes() const { return live_nodes_; }

 private:
  std::shared_ptr<Backend> backend_;
  Rng rng_;
  bool grad_enabled_ = true;
  int64_t node_order_ = 0;
  std::shared_ptr<std::atomic<int64_t>> live_nodes_ = std::make_shared<std::atomic<int64_t>>(0);
};

}  // namespace pm
