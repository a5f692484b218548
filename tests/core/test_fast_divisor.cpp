#include <limits>

#include "engine/core/fast_divisor.h"
#include "tests/support/test.h"

namespace pm::test {

TEST_CASE("fast division equals division", "[cpu]") {
  constexpr int kLargest = std::numeric_limits<int>::max();
  std::vector<int> divisors{kLargest, kLargest - 1, 1 << 30, (1 << 30) + 1, 65535, 65536, 65537};
  for (int d = 1; d <= 700; ++d) divisors.push_back(d);
  int64_t wrong = 0;
  for (const int d : divisors) {
    const FastDivisor divisor(d);
    for (int64_t multiple = 0; multiple <= kLargest; multiple += std::max<int64_t>(d, kLargest / 97 / d * d)) {
      for (int64_t n = std::max<int64_t>(0, multiple - 2); n <= std::min<int64_t>(kLargest, multiple + 2); ++n) {
        wrong += divisor.quotient(static_cast<int>(n)) != n / d ? 1 : 0;
      }
    }
    wrong += divisor.quotient(kLargest) != kLargest / d ? 1 : 0;
  }
  CHECK(wrong == 0);
  CHECK(FastDivisor().quotient(12345) == 12345);
}

}  // namespace pm::test
