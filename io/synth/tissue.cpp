#include "io/synth/tissue.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numbers>
#include <vector>

namespace pm::io {
namespace {

constexpr int64_t kChannels = 3;
using Colour = std::array<double, kChannels>;

constexpr Colour kGlass = {244.0, 243.0, 245.0}, kStroma = {240.0, 190.0, 218.0}, kNucleus = {84.0, 40.0, 138.0};
constexpr double kFineSpacing = 12.0, kCoarseSpacing = 72.0;  // micrometres between nuclei
constexpr double kPatchSize = 110.0;                          // micrometres: waves of the border between the kinds
constexpr double kBend = 6.0, kBendSize = 60.0;               // how far rows of nuclei stray, and over which length
constexpr double kSampleStep = 8.0;                           // micrometres between the points that measure shares

// Smooth noise in (0, 1): random values on a grid of `cell` micrometres, interpolated. The values are drawn once.
class ValueNoise {
 public:
  ValueNoise(const RngState& draw, double cell, double width, double height)
      : cell_(cell), columns_(static_cast<int64_t>(width / cell) + 2), values_() {
    const int64_t rows = static_cast<int64_t>(height / cell) + 2;
    values_.resize(static_cast<size_t>(columns_ * rows));
    for (size_t i = 0; i < values_.size(); ++i) values_[i] = uniform_at(draw, static_cast<int64_t>(i));
  }
  // 0 <= x < width, 0 <= y < height
  double at(double x, double y) const {
    const double column = std::floor(x / cell_), row = std::floor(y / cell_);
    const double fx = ease(x / cell_ - column), fy = ease(y / cell_ - row);
    const double* node = values_.data() + static_cast<int64_t>(row) * columns_ + static_cast<int64_t>(column);
    const double top = node[0] * (1.0 - fx) + node[1] * fx;
    const double bottom = node[columns_] * (1.0 - fx) + node[columns_ + 1] * fx;
    return top * (1.0 - fy) + bottom * fy;
  }

 private:
  static double ease(double t) { return t * t * (3.0 - 2.0 * t); }
  double cell_;
  int64_t columns_;
  std::vector<double> values_;
};

// A blob: an ellipse whose edge is bent by a few waves.
class Piece {
 public:
  // Its centre lies about `centre_y` (share of the height).
  Piece(const RngState& draw, double width, double height, double centre_y) {
    const auto between = [&](int64_t i, double low, double high) { return low + (high - low) * uniform_at(draw, i); };
    x_ = width * between(0, 0.38, 0.62);
    y_ = height * (centre_y + between(1, -0.02, 0.02));
    const double stretch = between(2, 0.9, 1.1);  // the area stays
    radius_x_ = 0.26 * width * stretch;
    radius_y_ = 0.155 * height / stretch;
    for (size_t i = 0; i < kWaves; ++i) {
      height_[i] = between(static_cast<int64_t>(3 + 2 * i), 0.02, 0.07);
      phase_[i] = between(static_cast<int64_t>(4 + 2 * i), 0.0, 2.0 * std::numbers::pi);
    }
  }
  bool holds(double x, double y) const {
    const double dx = (x - x_) / radius_x_, dy = (y - y_) / radius_y_, square = dx * dx + dy * dy;
    if (square > 1.7 || square < 0.5) return square < 1.0;
    const double angle = std::atan2(dy, dx);
    double edge = 1.0;
    for (size_t i = 0; i < kWaves; ++i) edge += height_[i] * std::cos(static_cast<double>(i + 2) * angle + phase_[i]);
    return square < edge * edge;
  }

 private:
  static constexpr size_t kWaves = 4;
  double x_, y_, radius_x_, radius_y_;
  double height_[kWaves], phase_[kWaves];
};

// The value below which `share` of the piece's area has the noise.
double level_for_share(const ValueNoise& noise, const Piece& piece, double width, double height, double share) {
  std::vector<double> values;
  for (double y = 0.5 * kSampleStep; y < height; y += kSampleStep) {
    for (double x = 0.5 * kSampleStep; x < width; x += kSampleStep) {
      if (piece.holds(x, y)) values.push_back(noise.at(x, y));
    }
  }
  const auto rank = static_cast<int64_t>(std::lround(share * static_cast<double>(values.size())));
  if (rank <= 0) return 0.0;
  if (rank >= static_cast<int64_t>(values.size())) return 1.0;
  std::nth_element(values.begin(), values.begin() + rank, values.end());
  return values[static_cast<size_t>(rank)];
}

// How much of a nucleus lies at (x, y), 0 to 1: one nucleus in each square of a grid, whole inside it. Squares of another size
// give the same picture at another scale, so the share of the area and every colour stay.
double nucleus_at(const RngState& draw, double x, double y, double spacing) {
  constexpr double kRadius = 0.42, kSoftEdge = 0.12;  // of the spacing
  constexpr double kStray = 0.5 - kRadius;
  const double column = std::floor(x / spacing), row = std::floor(y / spacing);
  const int64_t cell = 2 * (static_cast<int64_t>(row) * (int64_t{1} << 24) + static_cast<int64_t>(column));
  const double dx = x / spacing - column - 0.5 - kStray * (2.0 * uniform_at(draw, cell) - 1.0);
  const double dy = y / spacing - row - 0.5 - kStray * (2.0 * uniform_at(draw, cell + 1) - 1.0);
  return std::clamp((kRadius - std::sqrt(dx * dx + dy * dy)) / kSoftEdge, 0.0, 1.0);
}

}  // namespace

Image draw_tissue(const TissueSlide& slide, Rng draws) {
  const double width = static_cast<double>(slide.width) * slide.mpp,
               height = static_cast<double>(slide.height) * slide.mpp;
  const Piece pieces[2] = {{draws.next(), width, height, 0.24}, {draws.next(), width, height, 0.76}};
  const ValueNoise kinds(draws.next(), kPatchSize, width, height);
  const ValueNoise bend_x(draws.next(), kBendSize, width, height), bend_y(draws.next(), kBendSize, width, height);
  const RngState fine = draws.next(), coarse = draws.next();
  const double levels[2] = {level_for_share(kinds, pieces[0], width, height, slide.coarse_share[0]),
                            level_for_share(kinds, pieces[1], width, height, slide.coarse_share[1])};
  Image image{slide.width, slide.height, {}};
  image.rgb.resize(static_cast<size_t>(kChannels * slide.width * slide.height));
#pragma omp parallel for
  for (int64_t row = 0; row < slide.height; ++row) {
    uint8_t* pixel = image.rgb.data() + row * slide.width * kChannels;
    const double y = (static_cast<double>(row) + 0.5) * slide.mpp;
    for (int64_t column = 0; column < slide.width; ++column, pixel += kChannels) {
      const double x = (static_cast<double>(column) + 0.5) * slide.mpp;
      const int inside = pieces[0].holds(x, y) ? 0 : pieces[1].holds(x, y) ? 1 : -1;
      double nucleus = 0.0;
      if (inside >= 0) {
        const bool is_coarse = kinds.at(x, y) < levels[inside];
        // Shifted by more than it can stray, so that the squares count from 0.
        nucleus = nucleus_at(is_coarse ? coarse : fine, x + kBend * 2.0 * bend_x.at(x, y),
                             y + kBend * 2.0 * bend_y.at(x, y), is_coarse ? kCoarseSpacing : kFineSpacing);
      }
      for (size_t c = 0; c < kChannels; ++c) {
        const double colour = inside < 0 ? kGlass[c] : kStroma[c] + nucleus * (kNucleus[c] - kStroma[c]);
        pixel[c] = static_cast<uint8_t>(std::lround(colour));
      }
    }
  }
  return image;
}

}  // namespace pm::io
