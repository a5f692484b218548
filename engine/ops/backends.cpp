#include "engine/ops/backends.h"

#include "engine/core/check.h"
#include "engine/cpu/core/cpu_backend.h"
#ifdef PM_WITH_CUDA
#include "cuda/core/cuda_backend.h"
#endif

namespace pm {

#ifdef PM_WITH_CUDA
std::shared_ptr<Backend> make_backend(Device device) {
  return device.is_cpu() ? cpu::make_backend() : cuda::make_backend(device.index);
}
int cuda_device_count() { return cuda::device_count(); }
bool built_with_cuda() { return true; }
#else
std::shared_ptr<Backend> make_backend(Device device) {
  PM_CHECK(device.is_cpu(), DeviceError, "{} is not available: this build has no CUDA support (PM_WITH_CUDA=OFF)",
           device.str());
  return cpu::make_backend();
}
int cuda_device_count() { return 0; }
bool built_with_cuda() { return false; }
#endif

}  // namespace pm
