#include "engine/core/context.h"

#include <utility>

namespace pm {

Context::Context(std::shared_ptr<Backend> backend, uint64_t seed) : backend_(std::move(backend)), rng_(seed) {}

}  // namespace pm
