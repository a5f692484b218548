#include "io/slide/windows.h"

#include <algorithm>
#include <cmath>

#include "engine/core/check.h"

namespace pm::io {
namespace {

constexpr int64_t kChannels = 3;

int64_t pieces(int64_t length, int64_t step) { return (length + step - 1) / step; }

// 1 where the mean colour of a block is more saturated than the threshold. S = 255 * (max - min) / max, rounded.
uint8_t is_saturated(const Image& image, int64_t left, int64_t top, int64_t side, int threshold) {
  const int64_t right = std::min(left + side, image.width), bottom = std::min(top + side, image.height);
  int64_t sums[kChannels] = {};
  for (int64_t y = top; y < bottom; ++y) {
    const uint8_t* pixel = image.rgb.data() + (y * image.width + left) * kChannels;
    for (int64_t x = left; x < right; ++x, pixel += kChannels) {
      for (int64_t c = 0; c < kChannels; ++c) sums[c] += pixel[c];
    }
  }
  const auto [low, high] = std::minmax({sums[0], sums[1], sums[2]});
  if (high == 0) return 0;
  return std::lround(255.0 * static_cast<double>(high - low) / static_cast<double>(high)) > threshold ? 1 : 0;
}

// Running sums of `count` values at `step`, over `side` of them around each, the ends repeated.
void box_sums(const int32_t* from, int32_t* to, int64_t count, int64_t step, int64_t side) {
  const int64_t half = side / 2;
  const auto at = [&](int64_t i) { return from[std::clamp<int64_t>(i, 0, count - 1) * step]; };
  int32_t sum = 0;
  for (int64_t i = -half; i <= half; ++i) sum += at(i);
  for (int64_t i = 0; i < count; ++i) {
    to[i * step] = sum;
    sum += at(i + half + 1) - at(i - half);
  }
}

}  // namespace

TissueMask tissue_mask(const Image& image, double mpp, const TissueOptions& options) {
  PM_CHECK(options.median >= 1 && options.median % 2 == 1 && options.median <= 99, ConfigError,
           "the median filter has an odd side from 1 to 99, got {}", options.median);
  TissueMask mask;
  if (mpp > 0.0) mask.shrink = std::max<int64_t>(1, static_cast<int64_t>(options.mask_mpp / mpp + 1e-6));
  mask.width = pieces(image.width, mask.shrink);
  mask.height = pieces(image.height, mask.shrink);
  const int64_t count = mask.width * mask.height;
  std::vector<int32_t> raw(static_cast<size_t>(count)), sums(raw.size());
  for (int64_t y = 0; y < mask.height; ++y) {
    for (int64_t x = 0; x < mask.width; ++x) {
      raw[static_cast<size_t>(y * mask.width + x)] =
          is_saturated(image, x * mask.shrink, y * mask.shrink, mask.shrink, options.saturation);
    }
  }
  // A median is above a threshold exactly when most of the values are: the filter is a vote, two passes of sums.
  for (int64_t y = 0; y < mask.height; ++y) {
    box_sums(raw.data() + y * mask.width, sums.data() + y * mask.width, mask.width, 1, options.median);
  }
  for (int64_t x = 0; x < mask.width; ++x)
    box_sums(sums.data() + x, raw.data() + x, mask.height, mask.width, options.median);
  const int32_t majority = options.median * options.median / 2;
  mask.tissue.resize(static_cast<size_t>(count));
  for (size_t i = 0; i < mask.tissue.size(); ++i) mask.tissue[i] = raw[i] > majority ? 1 : 0;
  return mask;
}

WindowChoice find_background(const Image& image, const TissueMask& mask, int64_t region_size) {
  PM_CHECK(region_size > 0, ShapeError, "windows need a positive region_size, got {}", region_size);
  PM_CHECK(mask.width == pieces(image.width, mask.shrink) && mask.height == pieces(image.height, mask.shrink),
           ShapeError, "the mask of {} x {} is not one of a picture of {} x {}", mask.width, mask.height, image.width,
           image.height);
  WindowChoice choice;
  choice.grid = {pieces(image.height, region_size), pieces(image.width, region_size), region_size};
  choice.background.assign(static_cast<size_t>(choice.grid.count()), 1);
  for (int64_t row = 0; row < choice.grid.rows; ++row) {
    for (int64_t col = 0; col < choice.grid.cols; ++col) {
      const int64_t right = std::min(pieces((col + 1) * region_size, mask.shrink), mask.width);
      const int64_t bottom = std::min(pieces((row + 1) * region_size, mask.shrink), mask.height);
      uint8_t& background = choice.background[static_cast<size_t>(row * choice.grid.cols + col)];
      for (int64_t y = row * region_size / mask.shrink; y < bottom && background; ++y) {
        const auto line = mask.tissue.begin() + y * mask.width;
        if (std::find(line + col * region_size / mask.shrink, line + right, 1) != line + right) background = 0;
      }
      choice.background_count += background;
    }
  }
  choice.no_tissue = choice.background_count == choice.grid.count();
  if (choice.no_tissue) {
    std::fill(choice.background.begin(), choice.background.end(), uint8_t{0});
    choice.background_count = 0;
  }
  return choice;
}

Image pack_windows(Image image, const PictureGrid& grid, const std::vector<uint8_t>& keep, bool raster,
                   std::vector<int64_t>* order) {
  const int64_t side = grid.region_size;
  PM_CHECK(side > 0 && grid.rows == pieces(image.height, side) && grid.cols == pieces(image.width, side) &&
               static_cast<int64_t>(keep.size()) == grid.count(),
           ShapeError, "a picture of {} x {} has no {} x {} windows of {} pixels, or {} of them are not all",
           image.width, image.height, grid.cols, grid.rows, side, keep.size());
  std::vector<int64_t> visited;
  for (int64_t row = 0; row < grid.rows; ++row) {
    for (int64_t k = 0; k < grid.cols; ++k) {
      const int64_t index = row * grid.cols + (!raster && row % 2 == 1 ? grid.cols - 1 - k : k);
      if (keep[static_cast<size_t>(index)]) visited.push_back(index);
    }
  }
  PM_CHECK(!visited.empty(), ShapeError, "none of the {} windows is kept", grid.count());
  const auto kept = static_cast<int64_t>(visited.size());
  if (order) *order = visited;
  if (kept == grid.count()) return image;
  Image packed{kept * side, side, {}};
  packed.rgb.assign(static_cast<size_t>(packed.width * packed.height * kChannels), 255);
  for (int64_t i = 0; i < kept; ++i) {
    const int64_t top = visited[static_cast<size_t>(i)] / grid.cols * side,
                  left = visited[static_cast<size_t>(i)] % grid.cols * side;
    const int64_t columns = std::min(side, image.width - left);
    for (int64_t y = 0; y < std::min(side, image.height - top); ++y) {
      std::copy_n(image.rgb.data() + ((top + y) * image.width + left) * kChannels, columns * kChannels,
                  packed.rgb.data() + (y * packed.width + i * side) * kChannels);
    }
  }
  return packed;
}

TissueWindows leave_out_background(Image image, double mpp, int64_t region_size, bool raster,
                                   const TissueOptions& options, const std::function<bool(int64_t)>& keep_window) {
  TissueWindows result;
  const WindowChoice choice = find_background(image, tissue_mask(image, mpp, options), region_size);
  result.windows = choice.grid.count();
  result.background = choice.background_count;
  result.no_tissue = choice.no_tissue;
  std::vector<uint8_t> keep(choice.background.size(), 1);
  for (size_t i = 0; i < keep.size(); ++i) {
    if (!choice.background[i] || (keep_window && keep_window(static_cast<int64_t>(i)))) continue;
    keep[i] = 0;
    ++result.left_out;
  }
  result.image =
      result.left_out > 0 ? pack_windows(std::move(image), choice.grid, keep, raster, &result.kept) : std::move(image);
  return result;
}

}  // namespace pm::io
