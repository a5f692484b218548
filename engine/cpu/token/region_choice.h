// Which regions merge into which, and their means: see engine/ops/token/region_fusion.h
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <vector>

namespace pm::cpu {

// Below every cosine: where the comparison with NaN has no answer.
inline constexpr double kNanSimilarity = -2.0;

// Most similar gallery region of one probe.
struct Match {
  double similarity;
  int64_t gallery;  // region index (odd)
};

// The sums run over channels in ascending order: see the header.
template <typename T>
double dot(const T* a, const T* b, int64_t channels) {
  double sum = 0.0;
  for (int64_t c = 0; c < channels; ++c) sum += static_cast<double>(a[c]) * static_cast<double>(b[c]);
  return sum;
}

inline double cosine(double product, double norm2_a, double norm2_b) {
  const double norms = norm2_a * norm2_b;
  if (norms == 0.0) return 0.0;
  const double similarity = product / std::sqrt(norms);
  return std::isnan(similarity) ? kNanSimilarity : similarity;
}

// cls: CLS token of region 0; stride: values from one region to the next.
template <typename T>
std::vector<Match> match_probes(const T* cls, int64_t stride, int64_t pairs, int64_t channels) {
  std::vector<double> norm2(static_cast<size_t>(2 * pairs));
#pragma omp parallel for
  for (int64_t region = 0; region < 2 * pairs; ++region) {
    norm2[static_cast<size_t>(region)] = dot(cls + region * stride, cls + region * stride, channels);
  }
  std::vector<Match> matches(static_cast<size_t>(pairs));
#pragma omp parallel for
  for (int64_t pair = 0; pair < pairs; ++pair) {
    const int64_t probe = 2 * pair;
    Match best{kNanSimilarity - 1.0, 0};
    for (int64_t gallery = 1; gallery < 2 * pairs; gallery += 2) {
      const double product = dot(cls + probe * stride, cls + gallery * stride, channels);
      const double similarity = cosine(product, norm2[static_cast<size_t>(probe)], norm2[static_cast<size_t>(gallery)]);
      if (similarity > best.similarity) best = {similarity, gallery};
    }
    matches[static_cast<size_t>(pair)] = best;
  }
  return matches;
}

// target[i] for one image, from the matches of its probes.
inline void place_regions(const std::vector<Match>& matches, int64_t n_regions, int64_t k, int64_t* target) {
  std::vector<int64_t> order(matches.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
    return matches[static_cast<size_t>(a)].similarity > matches[static_cast<size_t>(b)].similarity;
  });
  std::vector<int64_t> merged_into(static_cast<size_t>(n_regions), -1);
  for (int64_t i = 0; i < k; ++i) {
    const int64_t pair = order[static_cast<size_t>(i)];
    merged_into[static_cast<size_t>(2 * pair)] = matches[static_cast<size_t>(pair)].gallery;
  }
  int64_t place = 0;
  for (int64_t region = 0; region < n_regions; ++region) {
    if (merged_into[static_cast<size_t>(region)] < 0) target[region] = place++;
  }
  for (int64_t region = 0; region < n_regions; ++region) {
    const int64_t gallery = merged_into[static_cast<size_t>(region)];
    if (gallery >= 0) target[region] = target[gallery];
  }
}

// target and count of every image, for engine/ops/token/region_fusion.h. tokens: (batch, n_regions, region_len, channels)
template <typename T>
void choose_regions(const T* tokens, int64_t batch, int64_t n_regions, int64_t region_len, int64_t channels, int64_t k,
                    int64_t* target, int64_t* count) {
  const int64_t values = region_len * channels, cls_offset = (region_len - 1) / 2 * channels, n_out = n_regions - k;
  std::fill(count, count + batch * n_out, int64_t{0});
  for (int64_t b = 0; b < batch; ++b) {
    std::vector<Match> matches;
    if (k > 0) matches = match_probes(tokens + b * n_regions * values + cls_offset, values, n_regions / 2, channels);
    place_regions(matches, n_regions, k, target + b * n_regions);
    for (int64_t region = 0; region < n_regions; ++region) ++count[b * n_out + target[b * n_regions + region]];
  }
}

// The regions of one image that went to each output region, in ascending order. target: (n_regions)
inline std::vector<std::vector<int64_t>> sources_of(const int64_t* target, int64_t n_regions, int64_t n_out) {
  std::vector<std::vector<int64_t>> sources(static_cast<size_t>(n_out));
  for (int64_t region = 0; region < n_regions; ++region) sources[static_cast<size_t>(target[region])].push_back(region);
  return sources;
}

// out = mean of the regions. tokens: (n_regions, values); out: (values)
template <typename T>
void mean_of_regions(const T* tokens, const std::vector<int64_t>& regions, T* out, int64_t values) {
  const T divisor = static_cast<T>(regions.size());
  for (int64_t i = 0; i < values; ++i) {
    T sum = T(0);
    for (const int64_t region : regions) sum += tokens[region * values + i];
    out[i] = sum / divisor;
  }
}

}  // namespace pm::cpu
