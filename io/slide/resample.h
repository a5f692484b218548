// Changes the sampling of a picture: averages areas going down, interpolates going up. Works on the stored 8-bit values.
#pragma once
#include <cstdint>
#include <vector>

#include "io/slide/image.h"

namespace pm::io {

// Exact area average of a picture that arrives in pieces. Output pixel (i, j) is the mean over the source rectangle
// [j * scale_x, (j + 1) * scale_x) x [i * scale_y, (i + 1) * scale_y), cut at the source's right and lower edge; source
// pixels that lie in it partly count with that part.
//
// The pieces tile the source row by row, each row of pieces of one height. average() may run in many threads; add() takes
// the pieces one at a time from left to right, top to bottom, so the sums do not depend on the number of threads. Memory:
// one row of pieces at output size, and the output.
class AreaAverage {
 public:
  // Sums of one piece over the output pixels that it touches.
  struct Piece {
    int64_t column = 0, row = 0, columns = 0, rows = 0;  // output pixels
    int64_t source_bottom = 0;
    bool last_of_row = false;
    std::vector<float> sums;  // (rows, columns, 3)
  };

  // Scales are at least 1: source pixels per output pixel. Output size: source / scale, rounded, at least 1.
  AreaAverage(int64_t source_width, int64_t source_height, double scale_x, double scale_y);
  static int64_t output_size(int64_t source, double scale);

  // rgb: (height, width, 3), the source rectangle at (x, y).
  Piece average(const uint8_t* rgb, int64_t x, int64_t y, int64_t width, int64_t height) const;
  void add(const Piece& piece);
  // At scale 1 nothing is averaged: place() puts a piece into the output instead, from any thread, in any order.
  bool is_copy() const { return scale_x_ == 1.0 && scale_y_ == 1.0; }
  void place(const uint8_t* rgb, int64_t x, int64_t y, int64_t width, int64_t height);
  Image take() { return std::move(output_); }

 private:
  void finish_rows(int64_t end);

  int64_t source_width_, source_height_;
  double scale_x_, scale_y_;
  Image output_;
  int64_t first_row_ = 0;     // output row of the first row in sums_
  std::vector<double> sums_;  // (rows, output width, 3), rows not finished yet
};

// Bilinear interpolation; pixel centres, clamped at the edges. Scales are at most 1: source pixels per output pixel.
Image enlarge(const Image& source, double scale_x, double scale_y);

}  // namespace pm::io
