// Where devices come from: the one place that knows both backends.
#pragma once
#include <memory>

#include "engine/core/backend.h"

namespace pm {

// Throws DeviceError when the device is not there or this build has no CUDA.
std::shared_ptr<Backend> make_backend(Device device);
// Usable CUDA devices: 0 without a driver or in a CPU-only build.
int cuda_device_count();
bool built_with_cuda();

}  // namespace pm
