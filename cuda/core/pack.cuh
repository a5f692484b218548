// Several neighbouring values as one load or store.
#pragma once

namespace pm::cuda {

template <typename T, int kWidth>
struct alignas(sizeof(T) * kWidth) Pack {
  T values[kWidth];
};

}  // namespace pm::cuda
