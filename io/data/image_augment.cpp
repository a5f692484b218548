#include "io/data/image_augment.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numbers>
#include <utility>
#include <vector>

#include "engine/core/check.h"
#include "engine/core/philox.h"

namespace pm::io {
namespace {

constexpr int64_t kChannels = 3;
using Four = float __attribute__((vector_size(16)));  // a pixel and a value that is not used
constexpr uint64_t kTries = 10;                       // of torchvision and timm
constexpr double kMinErase = 0.02, kMaxErase = 0.33, kMinEraseRatio = 0.3, kMaxEraseRatio = 3.3;
// "crop", "eras", "nois", "mixu": apart from each other and from other uses of the seed
constexpr uint64_t kCropStream = 0x63726f70, kEraseStream = 0x65726173, kNoiseStream = 0x6e6f6973,
                   kMixupStream = 0x6d697875;

// Blocks of random words for one thing (a picture, a batch) of an epoch. 2^32 of them do not meet those of the next thing.
class Draws {
 public:
  Draws(uint64_t seed, int64_t epoch, int64_t thing)
      : seed_(seed), epoch_(static_cast<uint64_t>(epoch)), first_(static_cast<uint64_t>(thing) << 32) {}
  PhiloxBlock at(uint64_t block) const { return philox_at(seed_, epoch_, first_ + block); }

 private:
  uint64_t seed_, epoch_, first_;
};

double between(uint32_t word, double low, double high) { return low + (high - low) * uniform_from_word(word); }
double between_log(uint32_t word, double low, double high) {
  return std::exp(between(word, std::log(low), std::log(high)));
}

// The source pixels that each output pixel is a weighted mean of.
struct Filter {
  struct Span {
    int64_t first, count;
  };
  std::vector<Span> spans;
  std::vector<float> weights;  // of all spans, one after the other; those of a span have the sum 1
};

// The triangle over [start, start + length) of `source` pixels, for `outputs` pixels.
Filter triangle(double start, double length, int64_t source, int64_t outputs) {
  const double scale = length / static_cast<double>(outputs), support = std::max(scale, 1.0);
  Filter filter;
  filter.spans.reserve(static_cast<size_t>(outputs));
  filter.weights.reserve(static_cast<size_t>(outputs) * static_cast<size_t>(2.0 * support + 2.0));
  for (int64_t i = 0; i < outputs; ++i) {
    const double centre = start + (static_cast<double>(i) + 0.5) * scale;
    const auto begin = std::max<int64_t>(0, static_cast<int64_t>(std::floor(centre - support)));
    const auto end = std::min<int64_t>(source, static_cast<int64_t>(std::ceil(centre + support)));
    Filter::Span span{0, 0};
    double sum = 0.0;
    for (int64_t k = begin; k < end; ++k) {
      const double weight = 1.0 - std::abs(static_cast<double>(k) + 0.5 - centre) / support;
      if (weight <= 0.0) continue;
      if (span.count++ == 0) span.first = k;
      sum += weight;
      filter.weights.push_back(static_cast<float>(weight));
    }
    const auto part = static_cast<float>(1.0 / sum);
    for (auto weight = filter.weights.end() - span.count; weight != filter.weights.end(); ++weight) *weight *= part;
    filter.spans.push_back(span);
  }
  return filter;
}

// One of the Gamma distribution, as its logarithm, so that small alpha do not end at 0 (Marsaglia and Tsang 2000). `block` goes on.
double draw_log_gamma(double alpha, const Draws& draws, uint64_t& block) {
  // Gamma(alpha) = Gamma(alpha + 1) * uniform^(1 / alpha); done for every alpha, the method needs one of at least 1.
  const double d = alpha + 1.0 - 1.0 / 3.0, c = 1.0 / std::sqrt(9.0 * d);
  while (true) {
    const PhiloxBlock words = draws.at(block++);
    const double radius = std::sqrt(-2.0 * std::log(double{uniform_from_word(words.word[0])}));
    const double normal = radius * std::cos(2.0 * std::numbers::pi * uniform_from_word(words.word[1]));
    const double root = 1.0 + c * normal;
    if (root <= 0.0) continue;
    const double v = root * root * root;
    const double accept = std::log(double{uniform_from_word(words.word[2])});
    if (accept < 0.5 * normal * normal + d * (1.0 - v + std::log(v)))
      return std::log(d * v) + std::log(double{uniform_from_word(words.word[3])}) / alpha;
  }
}

}  // namespace

void check_options(const ImageAugmentOptions& options) {
  PM_CHECK(options.min_area > 0.0 && options.min_area <= 1.0, ConfigError,
           "the smallest share of a picture to crop is above 0 and at most 1, got {}", options.min_area);
  PM_CHECK(options.min_ratio > 0.0 && options.min_ratio <= options.max_ratio && std::isfinite(options.max_ratio),
           ConfigError, "the ratios of crops are positive and go upwards, got {} to {}", options.min_ratio,
           options.max_ratio);
  PM_CHECK(options.erase >= 0.0 && options.erase <= 1.0, ConfigError,
           "the probability of erasing is from 0 to 1, got {}", options.erase);
  PM_CHECK(options.mixup >= 0.0 && std::isfinite(options.mixup), ConfigError, "alpha of mixup is not negative, got {}",
           options.mixup);
}

CropBox draw_crop(const ImageAugmentOptions& options, int64_t width, int64_t height, uint64_t seed, int64_t epoch,
                  int64_t image) {
  PM_CHECK(width > 0 && height > 0, ShapeError, "a picture of {} x {} pixels has nothing to crop", width, height);
  const Draws draws(seed ^ kCropStream, epoch, image);
  const auto w = static_cast<double>(width), h = static_cast<double>(height);
  CropBox box{0.0, 0.0, w, h, options.flip && draws.at(kTries).word[0] >> 31 == 1};
  if (options.min_area >= 1.0) return box;
  for (uint64_t i = 0; i < kTries; ++i) {
    const PhiloxBlock words = draws.at(i);
    const double area = w * h * between(words.word[0], options.min_area, 1.0);
    const double ratio = between_log(words.word[1], options.min_ratio, options.max_ratio);
    box.width = std::sqrt(area * ratio);
    box.height = std::sqrt(area / ratio);
    if (box.width > w || box.height > h) continue;
    box.x = between(words.word[2], 0.0, w - box.width);
    box.y = between(words.word[3], 0.0, h - box.height);
    return box;
  }
  const double ratio = std::clamp(w / h, options.min_ratio, options.max_ratio);
  box.width = std::min(w, h * ratio);
  box.height = std::min(h, w / ratio);
  box.x = (w - box.width) / 2.0;
  box.y = (h - box.height) / 2.0;
  return box;
}

Image resample(const Image& image, const CropBox& box, int64_t size) {
  constexpr double kSlack = 1e-6;  // pixels: x + width is rounded
  PM_CHECK(static_cast<int64_t>(image.rgb.size()) == image.width * image.height * kChannels, ShapeError,
           "a picture of {} x {} has {} values, got {}", image.width, image.height,
           image.width * image.height * kChannels, image.rgb.size());
  PM_CHECK(size > 0 && box.width > 0.0 && box.height > 0.0 && box.x >= -kSlack && box.y >= -kSlack &&
               box.x + box.width <= static_cast<double>(image.width) + kSlack &&
               box.y + box.height <= static_cast<double>(image.height) + kSlack,
           ShapeError, "cannot take {} x {} pixels at ({}, {}) of a picture of {} x {} to a side of {}", box.width,
           box.height, box.x, box.y, image.width, image.height, size);
  const Filter columns = triangle(box.x, box.width, image.width, size);
  const Filter rows = triangle(box.y, box.height, image.height, size);
  const int64_t left = columns.spans.front().first, right = columns.spans.back().first + columns.spans.back().count;
  const int64_t values = (right - left) * kChannels;
  Image result{size, size, std::vector<uint8_t>(static_cast<size_t>(size * size * kChannels))};
  // Rows first: a whole line is one loop over bytes. One value more, as a pixel is read as four.
  std::vector<float> line(static_cast<size_t>(values + 1));
  const float* row_weight = rows.weights.data();
  for (int64_t y = 0; y < size; ++y) {
    const Filter::Span row = rows.spans[static_cast<size_t>(y)];
    for (int64_t k = 0; k < row.count; ++k) {
      const uint8_t* source = image.rgb.data() + ((row.first + k) * image.width + left) * kChannels;
      const float weight = *row_weight++;
      float* to = line.data();
      if (k == 0) {
        for (int64_t i = 0; i < values; ++i) to[i] = weight * static_cast<float>(source[i]);
      } else {
        for (int64_t i = 0; i < values; ++i) to[i] += weight * static_cast<float>(source[i]);
      }
    }
    const float* weight = columns.weights.data();
    for (int64_t x = 0; x < size; ++x) {
      const Filter::Span span = columns.spans[static_cast<size_t>(x)];
      const float* source = line.data() + (span.first - left) * kChannels;
      Four sum = {0.5f, 0.5f, 0.5f, 0.5f};  // to round; with weights of sum 1 it stays far below 256
      for (int64_t k = 0; k < span.count; ++k, source += kChannels) {
        Four pixel;
        std::memcpy(&pixel, source, sizeof(pixel));
        sum += *weight++ * pixel;
      }
      uint8_t* to = result.rgb.data() + (y * size + (box.flip ? size - 1 - x : x)) * kChannels;
      for (int64_t c = 0; c < kChannels; ++c) to[c] = static_cast<uint8_t>(sum[c]);
    }
  }
  return result;
}

void erase(Image& image, const ImageAugmentOptions& options, uint64_t seed, int64_t epoch, int64_t index) {
  const Draws draws(seed ^ kEraseStream, epoch, index);
  if (uniform_from_word(draws.at(kTries).word[0]) >= options.erase) return;
  const auto area = static_cast<double>(image.width * image.height);
  for (uint64_t i = 0; i < kTries; ++i) {
    const PhiloxBlock words = draws.at(i);
    const double part = area * between(words.word[0], kMinErase, kMaxErase);
    const double ratio = between_log(words.word[1], kMinEraseRatio, kMaxEraseRatio);
    const int64_t height = std::llround(std::sqrt(part * ratio)), width = std::llround(std::sqrt(part / ratio));
    if (width < 1 || height < 1 || width >= image.width || height >= image.height) continue;
    const auto x = static_cast<int64_t>(between(words.word[2], 0.0, static_cast<double>(image.width - width + 1)));
    const auto y = static_cast<int64_t>(between(words.word[3], 0.0, static_cast<double>(image.height - height + 1)));
    const Draws noise(seed ^ kNoiseStream, epoch, index);
    PhiloxBlock block{};
    int64_t value = 0;  // 16 bytes a block
    for (int64_t row = y; row < y + height; ++row) {
      uint8_t* to = image.rgb.data() + (row * image.width + x) * kChannels;
      for (int64_t k = 0; k < width * kChannels; ++k, ++value) {
        if (value % 16 == 0) block = noise.at(static_cast<uint64_t>(value / 16));
        to[k] = static_cast<uint8_t>(block.word[value / 4 % 4] >> (value % 4 * 8));
      }
    }
    return;
  }
}

Image centre_crop(const Image& image, int64_t size) {
  if (image.width == size && image.height == size) return image;
  const double side = 0.875 * static_cast<double>(std::min(image.width, image.height));
  const CropBox box{(static_cast<double>(image.width) - side) / 2.0, (static_cast<double>(image.height) - side) / 2.0,
                    side, side, false};
  return resample(image, box, size);
}

double draw_mixup(double alpha, uint64_t seed, int64_t epoch, int64_t batch) {
  PM_CHECK(alpha >= 0.0 && std::isfinite(alpha), ConfigError, "alpha of mixup is not negative, got {}", alpha);
  if (alpha == 0.0) return 1.0;
  const Draws draws(seed ^ kMixupStream, epoch, batch);
  uint64_t block = 0;
  const double first = draw_log_gamma(alpha, draws, block), second = draw_log_gamma(alpha, draws, block);
  return 1.0 / (1.0 + std::exp(second - first));
}

}  // namespace pm::io
