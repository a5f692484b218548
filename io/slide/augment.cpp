#include "io/slide/augment.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

#include "engine/core/check.h"
#include "engine/core/philox.h"

namespace pm::io {
namespace {

constexpr int64_t kChannels = 3;
constexpr uint64_t kMoveStream = 0x6d6f7665,
                   kDropStream = 0x64726f70;  // "move", "drop": apart from other uses of the seed

using Vector = std::array<double, 3>;
using Matrix = std::array<Vector, 3>;  // rows

Vector cross(const Vector& a, const Vector& b) {
  return {a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]};
}

Vector normalised(const Vector& v) {
  const double length = std::sqrt(v[0] * v[0] + v[1] * v[1] + v[2] * v[2]);
  return {v[0] / length, v[1] / length, v[2] / length};
}

// Optical densities (row vectors) to those with the stains scaled: M^-1 * diag(factors) * M, rows of M the stains' colours.
Matrix stain_change(double haematoxylin, double eosin) {
  const Vector h = normalised({0.65, 0.70, 0.29}), e = normalised({0.07, 0.99, 0.11});
  const Matrix m = {h, e, normalised(cross(h, e))};
  const Matrix minors = {cross(m[1], m[2]), cross(m[2], m[0]), cross(m[0], m[1])};  // columns of the inverse times det
  const double det = m[0][0] * minors[0][0] + m[0][1] * minors[0][1] + m[0][2] * minors[0][2];
  const Vector factors = {haematoxylin, eosin, 1.0};
  Matrix change{};
  for (size_t i = 0; i < 3; ++i) {
    for (size_t j = 0; j < 3; ++j) {
      for (size_t k = 0; k < 3; ++k) change[i][j] += minors[k][i] / det * factors[k] * m[k][j];
    }
  }
  return change;
}

// 255 * brightness * exp(-density), rounded, for densities at steps of 1 / kSteps.
class Transmission {
 public:
  explicit Transmission(double brightness) {
    for (size_t i = 0; i < table_.size(); ++i) {
      const double light = 255.0 * brightness * std::exp(-static_cast<double>(i) / kSteps);
      table_[i] = static_cast<uint8_t>(std::lround(std::clamp(light, 0.0, 255.0)));
    }
  }
  uint8_t at(double density) const {
    const double place = std::clamp(density * kSteps + 0.5, 0.0, static_cast<double>(table_.size() - 1));
    return table_[static_cast<size_t>(place)];
  }

 private:
  static constexpr double kSteps = 1024.0;
  std::array<uint8_t, 8192> table_{};  // density 8 is black
};

}  // namespace

bool Augmentation::identity() const {
  return !flip && turns == 0 && shift_x == 0 && shift_y == 0 && haematoxylin == 1.0 && eosin == 1.0 &&
         brightness == 1.0;
}

Augmentation draw_augmentation(const AugmentOptions& options, int64_t region_size, uint64_t seed, int64_t epoch,
                               int64_t sample) {
  const uint64_t stream = static_cast<uint64_t>(epoch), place = static_cast<uint64_t>(sample) * 2;
  const PhiloxBlock first = philox_at(seed ^ kMoveStream, stream, place),
                    second = philox_at(seed ^ kMoveStream, stream, place + 1);
  const auto below = [](uint32_t word, int64_t count) {
    return static_cast<int64_t>(uint64_t{word} * static_cast<uint64_t>(count) >> 32);
  };
  const auto around_one = [](uint32_t word, double share) {
    return 1.0 + share * (2.0 * uniform_from_word(word) - 1.0);
  };
  Augmentation result;
  result.flip = options.flip && below(first.word[0], 2) == 1;
  if (options.turn) result.turns = static_cast<int>(below(first.word[1], 4));
  if (options.shift && region_size > 0) {
    result.shift_x = below(first.word[2], region_size);
    result.shift_y = below(first.word[3], region_size);
  }
  result.haematoxylin = around_one(second.word[0], options.stain);
  result.eosin = around_one(second.word[1], options.stain);
  result.brightness = around_one(second.word[2], options.brightness);
  return result;
}

bool draw_drop(double probability, uint64_t seed, int64_t epoch, int64_t sample, int64_t window) {
  const uint64_t place = static_cast<uint64_t>(sample) << 32 ^ static_cast<uint64_t>(window);
  return uniform_from_word(philox_at(seed ^ kDropStream, static_cast<uint64_t>(epoch), place).word[0]) < probability;
}

Image move_pixels(Image image, const Augmentation& augmentation) {
  const bool sideways = augmentation.turns % 2 == 1;
  if (!augmentation.flip && augmentation.turns == 0 && augmentation.shift_x == 0 && augmentation.shift_y == 0)
    return image;
  // The pixel of `image` that comes to (y, x): a turn counter-clockwise brings the right edge to the top.
  const auto source = [&](int64_t y, int64_t x) {
    int64_t row = y, col = x;
    if (augmentation.turns == 1) row = x, col = image.width - 1 - y;
    if (augmentation.turns == 2) row = image.height - 1 - y, col = image.width - 1 - x;
    if (augmentation.turns == 3) row = image.height - 1 - x, col = y;
    return row * image.width + (augmentation.flip ? image.width - 1 - col : col);
  };
  const int64_t height = sideways ? image.width : image.height, width = sideways ? image.height : image.width;
  const int64_t step_x = source(0, 1) - source(0, 0), step_y = source(1, 0) - source(0, 0);
  Image moved{width + augmentation.shift_x, height + augmentation.shift_y, {}};
  moved.rgb.assign(static_cast<size_t>(moved.width * moved.height * kChannels), 255);
  constexpr int64_t kBlock = 64;  // both pictures pass through the cache in squares
  for (int64_t top = 0; top < height; top += kBlock) {
    for (int64_t left = 0; left < width; left += kBlock) {
      for (int64_t y = top; y < std::min(top + kBlock, height); ++y) {
        int64_t from = source(0, 0) + y * step_y + left * step_x;
        uint8_t* to =
            moved.rgb.data() + ((y + augmentation.shift_y) * moved.width + left + augmentation.shift_x) * kChannels;
        for (int64_t x = left; x < std::min(left + kBlock, width); ++x, from += step_x, to += kChannels) {
          std::copy_n(image.rgb.data() + from * kChannels, kChannels, to);
        }
      }
    }
  }
  return moved;
}

void change_colours(Image& image, const Augmentation& augmentation) {
  if (augmentation.haematoxylin == 1.0 && augmentation.eosin == 1.0 && augmentation.brightness == 1.0) return;
  const Matrix change = stain_change(augmentation.haematoxylin, augmentation.eosin);
  const Transmission transmission(augmentation.brightness);
  std::array<double, 256> density{};
  for (size_t i = 0; i < density.size(); ++i) density[i] = -std::log(std::max(1.0, static_cast<double>(i)) / 255.0);
  for (size_t i = 0; i < image.rgb.size(); i += kChannels) {
    uint8_t* pixel = image.rgb.data() + i;
    const double r = density[pixel[0]], g = density[pixel[1]], b = density[pixel[2]];
    for (size_t c = 0; c < 3; ++c) pixel[c] = transmission.at(r * change[0][c] + g * change[1][c] + b * change[2][c]);
  }
}

}  // namespace pm::io
