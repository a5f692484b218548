// A CUDA device as a Backend: one stream, one cuBLAS handle, the toolkit's stream-ordered memory pool.
#pragma once
#include <memory>

#include "engine/core/backend.h"

namespace pm::cuda {

// Number of usable devices; 0 without a driver.
int device_count();
// Throws DeviceError when there is no such device.
std::shared_ptr<Backend> make_backend(int index);

}  // namespace pm::cuda
