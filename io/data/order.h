// In which order a pass takes its slides or images.
#pragma once
#include <cstdint>
#include <vector>

namespace pm::io {

// A permutation of `members` that depends on seed and epoch alone (Fisher-Yates).
std::vector<int64_t> shuffled(std::vector<int64_t> members, uint64_t seed, int64_t epoch);
// As many slides as there are members, a class of n of them in proportion to n^(1 - strength), to whole numbers by the largest
// remainders (the first classes where these are equal). Strength 0 changes nothing, 1 gives each class the same number, 1/2 the
// square roots (Kang et al., "Decoupling representation and classifier for long-tailed recognition", ICLR 2020). Members of rare
// classes come several times, those of frequent ones take turns over the epochs. classes: of each member, from 0. Depends on
// strength, seed and epoch alone. Throws ConfigError unless 0 <= strength <= 1.
std::vector<int64_t> balanced(const std::vector<int64_t>& members, const std::vector<int64_t>& classes, double strength,
                              uint64_t seed, int64_t epoch);

}  // namespace pm::io
