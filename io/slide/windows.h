// Which windows of a picture the network sees.
//
// The network takes one picture and cuts it into windows of region_size x region_size (white beyond the right and lower edge).
// Windows are visited in boustrophedon order, or row by row (`raster`), every window has the same path inside, and nothing
// tells the network where a window was. So windows are left out by packing: the kept ones, in the order in which the whole
// picture would visit them, are laid side by side into a new picture one window high. One row of windows is visited from left
// to right under both orders: the sequence of tokens is exactly that of the whole picture without the windows left out.
//
// Background as CLAM decides it: saturation of HSV, median blur, threshold, at a coarse resolution (about 16 um per pixel). A
// window is background when no pixel of the mask in it is tissue. A picture without any tissue by this measure (grey masks,
// fluorescence) keeps all its windows, and says so.
#pragma once
#include <cstdint>
#include <functional>
#include <vector>

#include "io/slide/image.h"

namespace pm::io {

struct TissueOptions {
  int saturation = 8;      // above it is tissue, 0 to 255 (CLAM's default)
  int median = 7;          // side of the median filter, mask pixels, odd
  double mask_mpp = 16.0;  // resolution of the mask; the picture is averaged down by a whole number
};

// 1 where there is tissue. One mask pixel covers shrink x shrink pixels of the picture.
struct TissueMask {
  int64_t width = 0, height = 0, shrink = 1;
  std::vector<uint8_t> tissue;  // (height, width)
};

// mpp: of the picture; 0 (unknown) takes the pixels as they are.
TissueMask tissue_mask(const Image& image, double mpp, const TissueOptions& options = {});

struct PictureGrid {
  int64_t rows = 0, cols = 0, region_size = 0;
  int64_t count() const { return rows * cols; }
};

struct WindowChoice {
  PictureGrid grid;
  std::vector<uint8_t> background;  // (rows, cols), 1: no tissue
  int64_t background_count = 0;     // 0 when there is no tissue at all: see no_tissue
  bool no_tissue = false;           // the mask is empty, all windows count as tissue
};

// The grid of a picture and which of its windows hold no tissue.
WindowChoice find_background(const Image& image, const TissueMask& mask, int64_t region_size);

// keep: (rows, cols), 1: the window stays. All kept: the picture itself comes back. Otherwise (region_size, kept * region_size, 3).
// order, where given: the index in the grid (row * cols + col) of every window in the order of the network.
// Throws ShapeError when `keep` has another size than the grid or keeps nothing.
Image pack_windows(Image image, const PictureGrid& grid, const std::vector<uint8_t>& keep, bool raster = false,
                   std::vector<int64_t>* order = nullptr);

// A picture without its pure background windows, packed.
struct TissueWindows {
  Image image;
  int64_t windows = 0, background = 0, left_out = 0;
  bool no_tissue = false;     // by the mask the whole picture is background: nothing was left out
  std::vector<int64_t> kept;  // with left_out: row * cols + col of each window of `image`, in the order of the network
};
// keep_window, where given, says of a background window (row * cols + col) that it stays all the same.
TissueWindows leave_out_background(Image image, double mpp, int64_t region_size, bool raster,
                                   const TissueOptions& options = {},
                                   const std::function<bool(int64_t)>& keep_window = {});

}  // namespace pm::io
