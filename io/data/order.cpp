#include "io/data/order.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>

#include "engine/core/check.h"
#include "engine/core/philox.h"

namespace pm::io {
namespace {

constexpr uint64_t kOrderStream = 0x6f726472;  // "ordr": apart from other uses of the seed

// Of `total`, in proportion to counts^(1 - strength).
std::vector<int64_t> shares_of_classes(const std::vector<int64_t>& counts, int64_t total, double strength) {
  std::vector<double> wanted;
  for (const int64_t count : counts) wanted.push_back(std::pow(static_cast<double>(count), 1.0 - strength));
  const double sum = std::accumulate(wanted.begin(), wanted.end(), 0.0);
  std::vector<int64_t> shares;
  int64_t left = total;
  for (double& share : wanted) {
    share *= static_cast<double>(total) / sum;
    shares.push_back(static_cast<int64_t>(share + 1e-9));  // what is whole but for rounding is whole
    left -= shares.back();
  }
  std::vector<size_t> places(counts.size());
  std::iota(places.begin(), places.end(), size_t{0});
  const auto remainder = [&](size_t i) { return wanted[i] - static_cast<double>(shares[i]); };
  std::stable_sort(places.begin(), places.end(),
                   [&](size_t a, size_t b) { return remainder(a) > remainder(b) + 1e-9; });
  for (int64_t i = 0; i < left; ++i) ++shares[places[static_cast<size_t>(i)]];
  return shares;
}

}  // namespace

std::vector<int64_t> shuffled(std::vector<int64_t> members, uint64_t seed, int64_t epoch) {
  for (size_t i = members.size(); i > 1; --i) {
    const PhiloxBlock random = philox_at(seed ^ kOrderStream, static_cast<uint64_t>(epoch), i);
    const uint64_t draw = uint64_t{random.word[0]} << 32 | random.word[1];
    std::swap(members[i - 1], members[draw % i]);
  }
  return members;
}

std::vector<int64_t> balanced(const std::vector<int64_t>& members, const std::vector<int64_t>& classes, double strength,
                              uint64_t seed, int64_t epoch) {
  PM_CHECK(strength >= 0.0 && strength <= 1.0, ConfigError, "balance {}: from 0 (as they come) to 1 (equally often)",
           strength);
  PM_CHECK(classes.size() == members.size(), ConfigError, "{} slides, but classes of {}", members.size(),
           classes.size());
  std::map<int64_t, std::vector<int64_t>> of_class;
  for (size_t i = 0; i < members.size(); ++i) of_class[classes[i]].push_back(members[i]);
  std::vector<int64_t> counts;
  for (const auto& [label, slides] : of_class) counts.push_back(static_cast<int64_t>(slides.size()));
  const std::vector<int64_t> shares = shares_of_classes(counts, static_cast<int64_t>(members.size()), strength);
  std::vector<int64_t> order;
  order.reserve(members.size());
  size_t place = 0;
  for (const auto& [label, slides] : of_class) {
    // One permutation after the other, without end; each epoch takes the next `share` of them.
    const int64_t count = counts[place], share = shares[place];
    std::vector<int64_t> permutation;
    for (int64_t i = epoch * share; i < (epoch + 1) * share; ++i) {
      if (permutation.empty() || i % count == 0) permutation = shuffled(slides, seed, i / count);
      order.push_back(permutation[static_cast<size_t>(i % count)]);
    }
    ++place;
  }
  return shuffled(std::move(order), seed, epoch);
}

}  // namespace pm::io
