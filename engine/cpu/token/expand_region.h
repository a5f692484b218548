// Token expansion of one region, and its gradient: see engine/ops/token/token_expansion.h
#pragma once
#include "engine/ops/token/token_expansion.h"

namespace pm::cpu {

// One region: tokens and out point to its first value.
template <typename T>
void expand_region(const ExpansionMap& map, const T* tokens, T* out) {
  const int lines = is_horizontal(map.expansion) ? map.region_h : map.region_w;
  const int size = is_horizontal(map.expansion) ? map.region_w : map.region_h;
  const int channels = map.channels, new_channels = map.new_channels();
  const T* cls_in = tokens + cls_index_of(map.region_h * map.region_w) * channels;
  T* cls_out = out + cls_index_of(map.new_h() * map.new_w()) * new_channels;
  for (int c = 0; c < new_channels; ++c) cls_out[c] = cls_in[c % channels];

  const T first = map.shift_pad == ShiftPad::replicate ? T(1) : T(0.5);
  for (int line = 0; line < lines; ++line) {
    for (int j = 0; j < size / 2; ++j) {
      const T* even = tokens + map.in_token(line, 2 * j) * channels;
      const T* odd = tokens + map.in_token(line, 2 * j + 1) * channels;
      const T* before = j == 0 ? nullptr : tokens + map.in_token(line, 2 * j - 1) * channels;
      T* merged = out + map.out_token(line, j) * new_channels;
      for (int c = 0; c < channels; ++c) {
        const T m_even = before == nullptr ? first * even[c] : T(0.5) * (even[c] + before[c]);
        const T m_odd = T(0.5) * (odd[c] + even[c]);
        if (is_cat(map.expansion)) {
          merged[c] = m_even;
          merged[channels + c] = m_odd;
        } else {
          merged[c] = T(0.5) * (m_even + m_odd);
        }
      }
    }
  }
}

template <typename T>
void expand_region_grad(const ExpansionMap& map, const T* dout, T* dtokens) {
  const bool cat = is_cat(map.expansion);
  const int lines = is_horizontal(map.expansion) ? map.region_h : map.region_w;
  const int size = is_horizontal(map.expansion) ? map.region_w : map.region_h;
  const int channels = map.channels, new_channels = map.new_channels();
  const T* dcls_out = dout + cls_index_of(map.new_h() * map.new_w()) * new_channels;
  T* dcls_in = dtokens + cls_index_of(map.region_h * map.region_w) * channels;
  for (int c = 0; c < channels; ++c) dcls_in[c] = cat ? dcls_out[c] + dcls_out[channels + c] : dcls_out[c];

  // Gradient of m_i, the shift-merged cell i of a line.
  const auto dmerged = [&](int line, int i, int c) {
    const T* token = dout + map.out_token(line, i / 2) * new_channels;
    return cat ? token[(i % 2) * channels + c] : T(0.5) * token[c];
  };
  for (int line = 0; line < lines; ++line) {
    for (int i = 0; i < size; ++i) {
      const T own = i == 0 && map.shift_pad == ShiftPad::replicate ? T(1) : T(0.5);
      T* dcell = dtokens + map.in_token(line, i) * channels;
      for (int c = 0; c < channels; ++c) {
        dcell[c] = own * dmerged(line, i, c) + (i + 1 < size ? T(0.5) * dmerged(line, i + 1, c) : T(0));
      }
    }
  }
}

}  // namespace pm::cpu
