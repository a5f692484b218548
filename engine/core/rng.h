// A random stream: seed and offset are its whole state, so saving it is two integers.
#pragma once
#include <cstdint>

#include "engine/core/philox.h"

namespace pm {

struct RngState {
  uint64_t seed = 0;
  uint64_t offset = 0;  // counts draws; each draw has 2^64 positions of its own
  bool operator==(const RngState&) const = default;
};

class Rng {
 public:
  explicit Rng(uint64_t seed) : state_{seed, 0} {}
  explicit Rng(RngState state) : state_(state) {}

  const RngState& state() const { return state_; }
  void set_state(RngState state) { state_ = state; }
  // The state for one tensor-sized draw; the stream moves on to the next.
  RngState next() {
    const RngState drawn = state_;
    ++state_.offset;
    return drawn;
  }

 private:
  RngState state_;
};

// Element `index` of a draw. uniform: (0, 1). normal: Box-Muller in double, mean 0, deviation 1.
double uniform_at(const RngState& draw, int64_t index);
double normal_at(const RngState& draw, int64_t index);
// Normal truncated to [-limit, limit] deviations, by rejection inside the element's own counter range.
double truncated_normal_at(const RngState& draw, int64_t index, double limit);

}  // namespace pm
