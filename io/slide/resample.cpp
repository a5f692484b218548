#include "io/slide/resample.h"

#include <algorithm>
#include <cmath>

#include "engine/core/check.h"

namespace pm::io {
namespace {

constexpr int64_t kChannels = 3;

uint8_t to_byte(double value) { return static_cast<uint8_t>(std::clamp(std::lround(value), 0L, 255L)); }

// How much of source pixel p falls to output pixel `first` and how much to the next one. A scale of at least 1 touches two.
struct Share {
  int64_t first;
  float first_part, next_part;
};

Share share_of(int64_t p, double scale, int64_t outputs) {
  // Sources past the last output pixel's edge (the size was rounded down) belong to nobody.
  const double left = static_cast<double>(p), right = left + 1.0;
  auto first = static_cast<int64_t>(std::floor(left / scale));
  const double border = static_cast<double>(first + 1) * scale;
  if (border <= left) ++first;  // rounding of the division
  const double edge = std::min(right, static_cast<double>(first + 1) * scale);
  return {first, first < outputs ? static_cast<float>(edge - left) : 0.0f,
          first + 1 < outputs ? static_cast<float>(right - edge) : 0.0f};
}

// Length of the source covered by output pixel i.
double covered(int64_t i, double scale, int64_t source) {
  return std::min(static_cast<double>(i + 1) * scale, static_cast<double>(source)) - static_cast<double>(i) * scale;
}

// Two neighbours and their weights for one output coordinate.
struct Blend {
  int64_t low, high;
  double part;  // of high
};

std::vector<Blend> blends(int64_t outputs, double scale, int64_t source) {
  std::vector<Blend> result;
  for (int64_t i = 0; i < outputs; ++i) {
    const double at = std::clamp((static_cast<double>(i) + 0.5) * scale - 0.5, 0.0, static_cast<double>(source - 1));
    const auto low = static_cast<int64_t>(at);
    result.push_back({low, std::min(low + 1, source - 1), at - static_cast<double>(low)});
  }
  return result;
}

}  // namespace

int64_t AreaAverage::output_size(int64_t source, double scale) {
  return std::max<int64_t>(1, std::llround(static_cast<double>(source) / scale));
}

AreaAverage::AreaAverage(int64_t source_width, int64_t source_height, double scale_x, double scale_y)
    : source_width_(source_width), source_height_(source_height), scale_x_(scale_x), scale_y_(scale_y) {
  PM_CHECK(scale_x >= 1.0 && scale_y >= 1.0, ShapeError, "area averages need scales of at least 1, got {} and {}",
           scale_x, scale_y);
  output_.width = output_size(source_width, scale_x);
  output_.height = output_size(source_height, scale_y);
  output_.rgb.resize(static_cast<size_t>(output_.width * output_.height * kChannels));
}

AreaAverage::Piece AreaAverage::average(const uint8_t* rgb, int64_t x, int64_t y, int64_t width, int64_t height) const {
  Piece piece;
  piece.column = share_of(x, scale_x_, output_.width).first;
  piece.row = share_of(y, scale_y_, output_.height).first;
  piece.columns = share_of(x + width - 1, scale_x_, output_.width).first + 2 - piece.column;
  piece.rows = share_of(y + height - 1, scale_y_, output_.height).first + 2 - piece.row;
  piece.source_bottom = y + height;
  piece.last_of_row = x + width == source_width_;
  piece.sums.assign(static_cast<size_t>(piece.rows * piece.columns * kChannels), 0.0f);
  std::vector<Share> shares;
  for (int64_t i = 0; i < width; ++i) shares.push_back(share_of(x + i, scale_x_, output_.width));
  std::vector<float> line(static_cast<size_t>(piece.columns * kChannels));
  for (int64_t j = 0; j < height; ++j) {
    std::fill(line.begin(), line.end(), 0.0f);
    const uint8_t* source = rgb + j * width * kChannels;
    for (int64_t i = 0; i < width; ++i, source += kChannels) {
      const Share& share = shares[static_cast<size_t>(i)];
      float* to = line.data() + (share.first - piece.column) * kChannels;
      for (int64_t c = 0; c < kChannels; ++c) {
        to[c] += share.first_part * static_cast<float>(source[c]);
        to[c + kChannels] += share.next_part * static_cast<float>(source[c]);
      }
    }
    const Share share = share_of(y + j, scale_y_, output_.height);
    float* first = piece.sums.data() + (share.first - piece.row) * piece.columns * kChannels;
    float* next = first + piece.columns * kChannels;
    for (size_t k = 0; k < line.size(); ++k) first[k] += share.first_part * line[k];
    if (share.next_part > 0.0f) {
      for (size_t k = 0; k < line.size(); ++k) next[k] += share.next_part * line[k];
    }
  }
  return piece;
}

void AreaAverage::place(const uint8_t* rgb, int64_t x, int64_t y, int64_t width, int64_t height) {
  for (int64_t j = 0; j < height; ++j) {
    std::copy_n(rgb + j * width * kChannels, width * kChannels,
                output_.rgb.data() + ((y + j) * output_.width + x) * kChannels);
  }
}

void AreaAverage::add(const Piece& piece) {
  const int64_t row_values = output_.width * kChannels;
  const int64_t rows = std::min(piece.row + piece.rows, output_.height) - first_row_;
  if (static_cast<int64_t>(sums_.size()) < rows * row_values) sums_.resize(static_cast<size_t>(rows * row_values), 0.0);
  const int64_t columns = std::min(piece.column + piece.columns, output_.width) - piece.column;
  for (int64_t j = 0; j < piece.rows && piece.row + j < output_.height; ++j) {
    double* to = sums_.data() + (piece.row + j - first_row_) * row_values + piece.column * kChannels;
    const float* from = piece.sums.data() + j * piece.columns * kChannels;
    for (int64_t k = 0; k < columns * kChannels; ++k) to[k] += from[k];
  }
  if (!piece.last_of_row) return;
  const bool all = piece.source_bottom == source_height_;
  finish_rows(all ? output_.height
                  : std::min(output_.height, share_of(piece.source_bottom, scale_y_, output_.height).first));
}

void AreaAverage::finish_rows(int64_t end) {
  if (end <= first_row_) return;
  const int64_t row_values = output_.width * kChannels;
  for (int64_t i = first_row_; i < end; ++i) {
    const double height = covered(i, scale_y_, source_height_);
    const double* from = sums_.data() + (i - first_row_) * row_values;
    uint8_t* to = output_.rgb.data() + i * row_values;
    for (int64_t j = 0; j < output_.width; ++j) {
      const double area = height * covered(j, scale_x_, source_width_);
      for (int64_t c = 0; c < kChannels; ++c) to[j * kChannels + c] = to_byte(from[j * kChannels + c] / area);
    }
  }
  sums_.erase(sums_.begin(), sums_.begin() + static_cast<std::ptrdiff_t>((end - first_row_) * row_values));
  first_row_ = end;
}

Image enlarge(const Image& source, double scale_x, double scale_y) {
  PM_CHECK(scale_x > 0.0 && scale_x <= 1.0 && scale_y > 0.0 && scale_y <= 1.0, ShapeError,
           "enlarging needs scales between 0 and 1, got {} and {}", scale_x, scale_y);
  Image output{AreaAverage::output_size(source.width, scale_x), AreaAverage::output_size(source.height, scale_y), {}};
  output.rgb.resize(static_cast<size_t>(output.width * output.height * kChannels));
  const std::vector<Blend> columns = blends(output.width, scale_x, source.width);
  const std::vector<Blend> rows = blends(output.height, scale_y, source.height);
#pragma omp parallel for
  for (int64_t i = 0; i < output.height; ++i) {
    const Blend& row = rows[static_cast<size_t>(i)];
    const uint8_t* low = source.rgb.data() + row.low * source.width * kChannels;
    const uint8_t* high = source.rgb.data() + row.high * source.width * kChannels;
    uint8_t* to = output.rgb.data() + i * output.width * kChannels;
    for (const Blend& column : columns) {
      for (int64_t c = 0; c < kChannels; ++c) {
        const int64_t left = column.low * kChannels + c, right = column.high * kChannels + c;
        const double upper = low[left] + column.part * (low[right] - low[left]);
        const double lower = high[left] + column.part * (high[right] - high[left]);
        *to++ = to_byte(upper + row.part * (lower - upper));
      }
    }
  }
  return output;
}

}  // namespace pm::io
