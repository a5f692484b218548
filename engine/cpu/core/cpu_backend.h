// The CPU as a device: host memory, OpenMP threads.
#pragma once
#include <memory>

#include "engine/core/backend.h"

namespace pm::cpu {

std::shared_ptr<Backend> make_backend();

}  // namespace pm::cpu
