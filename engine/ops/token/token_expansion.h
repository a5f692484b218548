// Token expansion: halves the (region_h, region_w) map of every region along one axis and doubles its channels, or
// keeps them.
//
// CLS is set aside and the other tokens go back to their map. With x_i the cells along the axis (width for
// horizontal_*, height for vertical_*), i = 0 .. size - 1, size even:
//   shift-merge: m_i = (x_i + x_{i-1}) / 2;   m_0 = x_0 (ShiftPad::replicate) or x_0 / 2 (ShiftPad::zero)
//   neighbours : cat: out_j = [m_{2j} ; m_{2j+1}] along channels;   avg: out_j = (m_{2j} + m_{2j+1}) / 2
// CLS becomes [cls ; cls] under cat and stays under avg. The path is rebuilt for the new map, CLS at index (new_h *
// new_w) / 2. Gradient, with dm_i = the half of dout_j that m_i filled (cat) or dout_j / 2 (avg), j = floor(i / 2):
//   dx_i = w_i * dm_i + dm_{i+1} / 2 (no second term at the end of the axis), w_i = 1/2 but w_0 = 1 under replicate
//   dcls = the sum of both halves (cat) or dcls_out (avg)
//
// tokens: (batch, n_regions, region_h * region_w + 1, channels), contiguous
// out   : (batch, n_regions, new_h * new_w + 1, channels * (1 | 2)), contiguous, same dtype
#pragma once
#include "engine/core/tensor.h"
#include "engine/ops/token/scan_order.h"

namespace pm {

enum class Expansion { horizontal_cat, horizontal_avg, vertical_cat, vertical_avg };
enum class ShiftPad { replicate, zero };

constexpr bool is_horizontal(Expansion expansion) {
  return expansion == Expansion::horizontal_cat || expansion == Expansion::horizontal_avg;
}
constexpr bool is_cat(Expansion expansion) {
  return expansion == Expansion::horizontal_cat || expansion == Expansion::vertical_cat;
}
// How the kind changes the sizes of a layer.
constexpr int64_t expanded_h(Expansion expansion, int64_t region_h) {
  return is_horizontal(expansion) ? region_h : region_h / 2;
}
constexpr int64_t expanded_w(Expansion expansion, int64_t region_w) {
  return is_horizontal(expansion) ? region_w / 2 : region_w;
}
constexpr int64_t expanded_channels(Expansion expansion, int64_t channels) {
  return is_cat(expansion) ? 2 * channels : channels;
}

// Everything about one expansion but the data. Offsets inside one region are 32-bit: a region holds fewer than 2^31
// values.
struct ExpansionMap {
  int64_t regions;         // batch * n_regions
  int region_h, region_w;  // of the input
  int channels;            // of the input
  Expansion expansion;
  ShiftPad shift_pad;
  ScanOrder scan;

  constexpr int new_h() const { return static_cast<int>(expanded_h(expansion, region_h)); }
  constexpr int new_w() const { return static_cast<int>(expanded_w(expansion, region_w)); }
  constexpr int new_channels() const { return static_cast<int>(expanded_channels(expansion, channels)); }
  constexpr int in_values() const { return (region_h * region_w + 1) * channels; }
  constexpr int out_values() const { return (new_h() * new_w() + 1) * new_channels(); }
  // Index in the sequence of the input region of cell `i` along the axis of line `line` across it.
  constexpr int in_token(int line, int i) const {
    const int position =
        is_horizontal(expansion) ? scan_position(scan, region_w, line, i) : scan_position(scan, region_w, i, line);
    return token_of_position(position, cls_index_of(region_h * region_w));
  }
  constexpr int out_token(int line, int j) const {
    const int position =
        is_horizontal(expansion) ? scan_position(scan, new_w(), line, j) : scan_position(scan, new_w(), j, line);
    return token_of_position(position, cls_index_of(new_h() * new_w()));
  }
};

struct TokenExpansionArgs {
  const void* tokens;
  void* out;
  ExpansionMap map;
  DType dtype;
};
struct TokenExpansionGradArgs {
  const void* dout;
  void* dtokens;
  ExpansionMap map;
  DType dtype;
};

namespace cpu {
void token_expansion(const TokenExpansionArgs&);
void token_expansion_grad(const TokenExpansionGradArgs&);
}  // namespace cpu
namespace cuda {
void token_expansion(const TokenExpansionArgs&, Stream);
void token_expansion_grad(const TokenExpansionGradArgs&, Stream);
}  // namespace cuda

namespace ops {
// Throws ShapeError, naming `op`, for a map that cannot be halved.
ExpansionMap make_expansion_map(const char* op, int64_t regions, int64_t region_h, int64_t region_w, int64_t channels,
                                Expansion expansion, ShiftPad shift_pad, ScanOrder scan);
// Each throws ShapeError (region_len is not region_h * region_w + 1, an odd axis, a region of 2^31 values), DTypeError
// or DeviceError.
Tensor token_expansion(Context& ctx, const Tensor& tokens, int64_t region_h, int64_t region_w, Expansion expansion,
                       ShiftPad shift_pad, ScanOrder scan);
// region_h and region_w are those of the input.
Tensor token_expansion_grad(Context& ctx, const Tensor& dout, int64_t region_h, int64_t region_w, Expansion expansion,
                            ShiftPad shift_pad, ScanOrder scan);
}  // namespace ops

}  // namespace pm
