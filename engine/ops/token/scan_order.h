// Paths over an (h, w) map, and where the CLS token sits in the sequence of a region. Host and device code.
//
// boustrophedon: left to right, the next row right to left, so that steps always lead to a neighbour.
// raster       : every row left to right.
// A region of h * w cells is a sequence of h * w + 1 tokens: the CLS token at index (h * w) / 2, the cells around it in
// path order. "Position" counts cells along the path (without CLS), "token" counts the sequence (with CLS).
#pragma once
#include <cstdint>

namespace pm {

enum class ScanOrder { boustrophedon, raster };

template <typename Int>
struct MapCell {
  Int row;
  Int col;
};

// The cell at `position` of the path over a map that is `w` cells wide.
template <typename Int>
constexpr MapCell<Int> scan_cell(ScanOrder scan, Int w, Int position) {
  const Int row = position / w;
  const Int along = position - row * w;
  const bool backwards = scan == ScanOrder::boustrophedon && row % 2 == 1;
  return {row, backwards ? w - 1 - along : along};
}

// The position of a cell on the path: the inverse of scan_cell.
template <typename Int>
constexpr Int scan_position(ScanOrder scan, Int w, Int row, Int col) {
  const bool backwards = scan == ScanOrder::boustrophedon && row % 2 == 1;
  return row * w + (backwards ? w - 1 - col : col);
}

// Index of the CLS token in a region of `cells` cells.
template <typename Int>
constexpr Int cls_index_of(Int cells) {
  return cells / 2;
}

template <typename Int>
constexpr Int token_of_position(Int position, Int cls_index) {
  return position < cls_index ? position : position + 1;
}

// `token` must not be cls_index.
template <typename Int>
constexpr Int position_of_token(Int token, Int cls_index) {
  return token < cls_index ? token : token - 1;
}

}  // namespace pm
