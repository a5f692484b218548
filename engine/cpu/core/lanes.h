// Eight floats side by side. The compiler makes them one AVX register, two SSE or NEON registers, or plain loops.
#pragma once
#include <cstdint>
#include <cstring>

#include "engine/cpu/core/fast_math.h"

namespace pm::cpu {

constexpr int kLanes = 8;
using Lanes = float __attribute__((vector_size(kLanes * sizeof(float))));
using LaneBits = uint32_t __attribute__((vector_size(kLanes * sizeof(uint32_t))));

// The first `count` lanes from memory of any alignment, the rest zero.
[[gnu::always_inline]] inline Lanes load_lanes(const float* source, int count) {
  Lanes v = {};
  if (count == kLanes) {
    std::memcpy(&v, source, sizeof(v));
  } else {
    for (int i = 0; i < count; ++i) v[i] = source[i];
  }
  return v;
}
[[gnu::always_inline]] inline void store_lanes(float* destination, const Lanes& v, int count) {
  if (count == kLanes) {
    std::memcpy(destination, &v, sizeof(v));
  } else {
    for (int i = 0; i < count; ++i) destination[i] = v[i];
  }
}

// 2^x to 2e-7 for x up to 127.5, at least 2^-126. NaN stays NaN.
[[gnu::always_inline]] inline Lanes exp2_lanes(const Lanes& exponent) {
  const Lanes lowest = Lanes{} - 126.0f;
  const Lanes x = exponent < lowest ? lowest : exponent;
  const Lanes shifted = x + kRounder;
  const Lanes f = x - (shifted - kRounder);
  Lanes p = Lanes{} + kExp2[0];
#pragma GCC unroll 8
  for (int i = 1; i < 7; ++i) p = p * f + kExp2[i];
  return reinterpret_cast<Lanes>(reinterpret_cast<LaneBits>(p) + (reinterpret_cast<LaneBits>(shifted) << 23));
}

// Lane i of the result is the sum of the lanes of v[i].
[[gnu::always_inline]] inline Lanes lane_sums(const Lanes* v) {
  const auto neighbours = [](const Lanes& a, const Lanes& b) __attribute__((always_inline)) {
    const Lanes even = __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14);
    const Lanes odd = __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15);
    return even + odd;
  };
  const Lanes low = neighbours(neighbours(v[0], v[1]), neighbours(v[2], v[3]));
  const Lanes high = neighbours(neighbours(v[4], v[5]), neighbours(v[6], v[7]));
  return neighbours(low, high);
}

}  // namespace pm::cpu
