// exp and what the block makes of it: the C library in double, which is the truth that kernels are held against; branch-free
// polynomials in float, which compilers vectorise. NaN stays NaN.
#pragma once
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>

namespace pm::cpu {

constexpr float kLog2e = 1.44269504f;

// 2^x for vectors (lanes.h): round(x) goes into the exponent bits, the rest through a polynomial on [-1/2, 1/2].
constexpr float kExp2[] = {1.5461445e-4f, 1.3400428e-3f, 9.6180567e-3f, 5.5503273e-2f, 0.24022651f, 0.69314721f, 1.0f};
constexpr float kRounder = 12582912.0f;  // 1.5 * 2^23: adding it leaves the rounded value in the low bits

// Relative error below 3e-7 for x in [-87, 88]; arguments outside are moved to that range, so the result is always finite
// and positive. exp(x) = 2^n * exp(r) with n = round(x / ln 2), |r| <= ln(2) / 2, and the Taylor series of exp(r) to degree 6,
// whose next term is below 1.3e-7.
[[gnu::always_inline]] inline float exponential(float x) {
  constexpr float kLn2High = 0.693359375f;    // ten bits: n * kLn2High is exact
  constexpr float kLn2Low = -2.12194440e-4f;  // ln 2 - kLn2High
  x = x < -87.0f ? -87.0f : x;
  x = x > 88.0f ? 88.0f : x;
  const float rounded = x * kLog2e + kRounder;
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
[[gnu::always_inline]] inline double exponential(double x) { return std::exp(x); }

// log(1 + e) for e in [0, 1] as 2 * atanh(e / (2 + e)).
[[gnu::always_inline]] inline float log1p_unit(float e) {
  const float t = e / (2.0f + e), w = t * t;
  float p = 0.14078889f;
  p = p * w + 0.13982579f;
  p = p * w + 0.20012298f;
  p = p * w + 0.33333161f;
  p = p * w + 1.0f;
  return 2.0f * t * p;
}
[[gnu::always_inline]] inline double log1p_unit(double e) { return std::log1p(e); }

template <typename T>
[[gnu::always_inline]] inline T softplus(T x) {
  const T value = std::max(x, T{0}) + log1p_unit(exponential(-std::abs(x)));
  return x > T{20} ? x : value;
}
// The derivative of softplus, which is the identity above 20.
template <typename T>
[[gnu::always_inline]] inline T softplus_slope(T x) {
  const T value = T{1} / (T{1} + exponential(-x));
  return x > T{20} ? T{1} : value;
}
template <typename T>
[[gnu::always_inline]] inline T sigmoid(T x) {
  return T{1} / (T{1} + exponential(-x));
}

}  // namespace pm::cpu
