#include "engine/core/rng.h"

#include <cmath>
#include <numbers>

namespace pm {
namespace {

// Attempt `attempt` of element `index`: attempts live in the top bits, elements in the low 48.
double normal_attempt(const RngState& draw, int64_t index, uint64_t attempt) {
  const PhiloxBlock block = philox_at(draw.seed, draw.offset, static_cast<uint64_t>(index) | (attempt << 48));
  const double u1 = uniform_from_word(block.word[0]), u2 = uniform_from_word(block.word[1]);
  return std::sqrt(-2.0 * std::log(u1)) * std::cos(2.0 * std::numbers::pi * u2);
}

}  // namespace

double uniform_at(const RngState& draw, int64_t index) {
  // Four neighbouring elements share one Philox block, as in the device kernel.
  const PhiloxBlock block = philox_at(draw.seed, draw.offset, static_cast<uint64_t>(index) >> 2);
  return uniform_from_word(block.word[index & 3]);
}

double normal_at(const RngState& draw, int64_t index) { return normal_attempt(draw, index, 0); }

double truncated_normal_at(const RngState& draw, int64_t index, double limit) {
  for (uint64_t attempt = 0;; ++attempt) {
    const double value = normal_attempt(draw, index, attempt);
    if (std::abs(value) <= limit) return value;
  }
}

}  // namespace pm
