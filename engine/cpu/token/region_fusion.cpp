#include "engine/ops/token/region_fusion.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "engine/cpu/core/dispatch.h"

namespace pm::cpu {
namespace {

// Below every cosine: where the comparison with NaN has no answer.
constexpr double kNanSimilarity = -2.0;

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

double cosine(double product, double norm2_a, double norm2_b) {
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
void place_regions(const std::vector<Match>& matches, int64_t n_regions, int64_t k, int64_t* target) {
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

// Means of the regions of one image. out: (n_out, values), tokens: (n_regions, values)
template <typename T>
void merge_regions(const T* tokens, const int64_t* target, const int64_t* count, T* out, int64_t n_regions,
                   int64_t n_out, int64_t values) {
  std::vector<std::vector<int64_t>> sources(static_cast<size_t>(n_out));
  for (int64_t region = 0; region < n_regions; ++region) sources[static_cast<size_t>(target[region])].push_back(region);
#pragma omp parallel for schedule(dynamic)
  for (int64_t o = 0; o < n_out; ++o) {
    const T divisor = static_cast<T>(count[o]);
    for (int64_t i = 0; i < values; ++i) {
      T sum = T(0);
      for (const int64_t region : sources[static_cast<size_t>(o)]) sum += tokens[region * values + i];
      out[o * values + i] = sum / divisor;
    }
  }
}

}  // namespace

void region_fusion(const RegionFusionArgs& args) {
  const int64_t n = args.n_regions, n_out = n - args.k, values = args.region_len * args.channels;
  const int64_t cls_offset = (args.region_len - 1) / 2 * args.channels;
  dispatch_float(args.dtype, [&]<typename T>() {
    for (int64_t b = 0; b < args.batch; ++b) {
      const T* tokens = static_cast<const T*>(args.tokens) + b * n * values;
      int64_t* target = args.target + b * n;
      int64_t* count = args.count + b * n_out;
      std::vector<Match> matches;
      if (args.k > 0) matches = match_probes(tokens + cls_offset, values, n / 2, args.channels);
      place_regions(matches, n, args.k, target);
      std::fill(count, count + n_out, int64_t{0});
      for (int64_t region = 0; region < n; ++region) ++count[target[region]];
      merge_regions(tokens, target, count, static_cast<T*>(args.out) + b * n_out * values, n, n_out, values);
    }
  });
}

void region_fusion_grad(const RegionFusionGradArgs& args) {
  dispatch_float(args.dtype, [&]<typename T>() {
    const T* dout = static_cast<const T*>(args.dout);
    T* dtokens = static_cast<T*>(args.dtokens);
#pragma omp parallel for
    for (int64_t row = 0; row < args.batch * args.n_regions; ++row) {
      const int64_t source = row / args.n_regions * args.n_out + args.target[row];
      const T divisor = static_cast<T>(args.count[source]);
      for (int64_t i = 0; i < args.region_values; ++i) {
        dtokens[row * args.region_values + i] = dout[source * args.region_values + i] / divisor;
      }
    }
  });
}

}  // namespace pm::cpu
