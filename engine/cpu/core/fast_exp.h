// exp for inner loops: std::exp in double; in float a branch-free polynomial that compilers vectorise.
#pragma once
#include <bit>
#include <cmath>
#include <cstdint>

namespace pm::cpu {

inline double fast_exp(double x) { return std::exp(x); }

// Relative error below 3e-7 for x in [-87, 88]; arguments outside are moved to that range, so the result is always finite
// and positive. NaN stays NaN. exp(x) = 2^n * exp(r) with n = round(x / ln 2), |r| <= ln(2) / 2, and the Taylor series of
// exp(r) to degree 6, whose next term is below 1.3e-7.
inline float fast_exp(float x) {
  constexpr float kLog2E = 1.44269504f;
  constexpr float kLn2High = 0.693359375f;    // ten bits: n * kLn2High is exact
  constexpr float kLn2Low = -2.12194440e-4f;  // ln 2 - kLn2High
  constexpr float kRounder = 12582912.0f;     // 1.5 * 2^23: adding it rounds to an integer in the low bits
  x = x < -87.0f ? -87.0f : x;
  x = x > 88.0f ? 88.0f : x;
  const float rounded = x * kLog2E + kRounder;
  const float n = rounded - kRounder;
  const float r = (x - n * kLn2High) - n * kLn2Low;
  float tail = 1.0f / 720.0f;
  tail = tail * r + 1.0f / 120.0f;
  tail = tail * r + 1.0f / 24.0f;
  tail = tail * r + 1.0f / 6.0f;
  tail = tail * r + 0.5f;
  const float exp_r = 1.0f + (r + r * r * tail);
  // The low bits of `rounded` hold n; shifted into the exponent field they give 2^n.
  const float power = std::bit_cast<float>((std::bit_cast<uint32_t>(rounded) + 127u) << 23);
  return exp_r * power;
}

}  // namespace pm::cpu
