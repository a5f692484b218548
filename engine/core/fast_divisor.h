// Division by a number that stays the same, as one multiplication and a shift: kernels split an index into row and column per
// value, and an integer division costs more than the rest of such a value. Source: Granlund and Montgomery, "Division by
// invariant integers using multiplication", PLDI 1994.
#pragma once
#include <cstdint>

namespace pm {

class FastDivisor {
 public:
  constexpr FastDivisor() = default;  // divides by 1
  // 1 <= divisor < 2^31
  explicit constexpr FastDivisor(int divisor) {
    const auto d = static_cast<uint64_t>(divisor);
    while ((uint64_t{1} << shift_) < d) ++shift_;
    multiplier_ = static_cast<uint32_t>((((uint64_t{1} << shift_) - d) << 32) / d + 1);
  }

  // value / divisor, for value >= 0
  constexpr int quotient(int value) const {
    const auto n = static_cast<uint32_t>(value);
    const auto high = static_cast<uint32_t>((uint64_t{n} * multiplier_) >> 32);
    return static_cast<int>((high + n) >> shift_);  // high <= n < 2^31: the sum fits
  }

 private:
  uint32_t multiplier_ = 1, shift_ = 0;
};

}  // namespace pm
