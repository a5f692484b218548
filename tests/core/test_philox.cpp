#include <array>
#include <cmath>

#include "engine/core/philox.h"
#include "engine/core/rng.h"
#include "tests/support/test.h"

namespace pm::test {
namespace {

using Words = std::array<uint32_t, 4>;

Words philox(const Words& counter, uint32_t key0, uint32_t key1) {
  const PhiloxBlock block = philox4x32({{counter[0], counter[1], counter[2], counter[3]}}, key0, key1);
  return {block.word[0], block.word[1], block.word[2], block.word[3]};
}

}  // namespace

// kat_vectors of Random123, philox 4x32, 10 rounds.
TEST_CASE("philox gives the published answers", "[cpu]") {
  CHECK(philox({0, 0, 0, 0}, 0, 0) == Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8});
  CHECK(philox({0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}, 0xffffffff, 0xffffffff) ==
        Words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd});
  CHECK(philox({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, 0xa4093822, 0x299f31d0) ==
        Words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1});
}

TEST_CASE("philox_at puts index, offset and seed where they belong", "[cpu]") {
  const PhiloxBlock block = philox_at(0x299f31d0a4093822, 0x0370734413198a2e, 0x85a308d3243f6a88);
  CHECK(block.word[0] == 0xd16cfe09);
  CHECK(block.word[3] == 0x24126ea1);
}

TEST_CASE("uniform_from_word never gives 0 or 1", "[cpu]") {
  CHECK(uniform_from_word(0) > 0.0f);
  CHECK(uniform_from_word(0xffffffff) < 1.0f);
  CHECK(uniform_from_word(0x80000000) > 0.5f);
}

TEST_CASE("a random stream is its seed and offset", "[cpu]") {
  Rng rng(5);
  const RngState first = rng.next(), second = rng.next();
  CHECK(first == RngState{5, 0});
  CHECK(second == RngState{5, 1});
  CHECK(uniform_at(first, 3) != uniform_at(second, 3));
  rng.set_state(first);
  CHECK(rng.next() == first);
}

TEST_CASE("draws have the moments of their distribution", "[cpu]") {
  const RngState draw{17, 4};
  const int n = 100'000;
  double mean_uniform = 0.0, mean = 0.0, square = 0.0, largest = 0.0;
  for (int64_t i = 0; i < n; ++i) {
    const double u = uniform_at(draw, i), z = normal_at(draw, i);
    REQUIRE((u > 0.0 && u < 1.0));
    mean_uniform += u / n;
    mean += z / n;
    square += z * z / n;
    largest = std::max(largest, std::abs(truncated_normal_at(draw, i, 2.0)));
  }
  CHECK(std::abs(mean_uniform - 0.5) < 0.005);
  CHECK(std::abs(mean) < 0.015);
  CHECK(std::abs(square - 1.0) < 0.03);
  CHECK(largest <= 2.0);
  CHECK(largest > 1.99);
}

}  // namespace pm::test
