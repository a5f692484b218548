// The convolution of one direction, for chunks of tokens that callers share among threads.
//
// Tokens are walked in spans of several whole tokens, so that the inner loops run over a few hundred neighbouring elements and
// vectorise even when d_inner is 6. Taps and bias are repeated once per token of a span to match.
#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

#include "engine/cpu/core/fast_math.h"
#include "engine/cpu/core/isa.h"

namespace pm::cpu {

// One sequence length, channel count and direction. Tap j looks `j` tokens back, in reverse `j` tokens ahead.
template <typename T>
class Convolution {
 public:
  Convolution(const T* weight, const T* bias, int64_t seq_len, int64_t d_inner, int64_t d_conv, bool reverse)
      : seq_len_(seq_len),
        d_inner_(d_inner),
        d_conv_(d_conv),
        reverse_(reverse),
        span_tokens_(std::max<int64_t>(1, kSpan / d_inner)),
        span_(span_tokens_ * d_inner),
        weight_(static_cast<size_t>(d_conv * span_)),
        bias_(static_cast<size_t>(span_)) {
    for (int64_t i = 0; i < span_; ++i) {
      const int64_t channel = i % d_inner;
      bias_[i] = bias[channel];
      for (int64_t j = 0; j < d_conv; ++j) weight_[j * span_ + i] = weight[channel * d_conv + d_conv - 1 - j];
    }
  }

  int64_t halo() const { return d_conv_ - 1; }
  int64_t span() const { return span_; }
  int64_t tap_step() const { return reverse_ ? -d_inner_ : d_inner_; }  // from tap j's element back to the output's
  // Tokens of a unit of parallel work.
  int64_t chunk_tokens() const { return std::max<int64_t>(1, kChunk / span_) * span_tokens_; }

  // silu of the convolution for tokens [begin, end) of one sequence. x, out: (seq_len, d_inner)
  void run(const T* x, T* out, int64_t begin, int64_t end) const {
    with_best_isa([&]() PM_ISA_BODY {
      for_spans(
          begin, end, [&](int64_t token, int64_t elements, int64_t taps) __attribute__((always_inline)) {
            T* target = out + token * d_inner_;
            convolve(target, x + token * d_inner_, elements, taps);
#pragma omp simd
            for (int64_t i = 0; i < elements; ++i) target[i] *= sigmoid(target[i]);
          });
    });
  }

  // Calls fn(token, elements, taps) for spans that cover tokens [begin, end). Tokens near the start of the walk see
  // fewer taps and come one by one.
  template <typename Fn>
  [[gnu::always_inline]] void for_spans(int64_t begin, int64_t end, Fn&& fn) const {
    const int64_t full_begin = reverse_ ? 0 : halo(), full_end = reverse_ ? seq_len_ - halo() : seq_len_;
    for (int64_t token = begin; token < end;) {
      const bool full = full_begin <= token && token < full_end;
      const int64_t count = full ? std::min({span_tokens_, end - token, full_end - token}) : 1;
      fn(token, count * d_inner_, full ? d_conv_ : (reverse_ ? seq_len_ - token : token + 1));
      token += count;
    }
  }

  // pre: `elements` values; x points at the element of tap 0.
  [[gnu::always_inline]] void convolve(T* pre, const T* x, int64_t elements, int64_t taps) const {
    const T* w = weight_.data();
    const T* b = bias_.data();
#pragma omp simd
    for (int64_t i = 0; i < elements; ++i) pre[i] = b[i] + w[i] * x[i];
    for (int64_t j = 1; j < taps; ++j) {
      const T* w_j = w + j * span_;
      const T* x_j = x - j * tap_step();
#pragma omp simd
      for (int64_t i = 0; i < elements; ++i) pre[i] += w_j[i] * x_j[i];
    }
  }

  // dx: `elements` values; dpre points at the element of tap 0 and is readable halo() tokens further.
  [[gnu::always_inline]] void transposed(T* dx, const T* dpre, int64_t elements) const {
    const T* w = weight_.data();
#pragma omp simd
    for (int64_t i = 0; i < elements; ++i) dx[i] = w[i] * dpre[i];
    for (int64_t j = 1; j < d_conv_; ++j) {
      const T* w_j = w + j * span_;
      const T* dpre_j = dpre + j * tap_step();
#pragma omp simd
      for (int64_t i = 0; i < elements; ++i) dx[i] += w_j[i] * dpre_j[i];
    }
  }

 private:
  static constexpr int64_t kSpan = 256;    // elements of a span, or one token if that is longer
  static constexpr int64_t kChunk = 8192;  // elements of a chunk

  int64_t seq_len_, d_inner_, d_conv_;
  bool reverse_;
  int64_t span_tokens_, span_;
  std::vector<T> weight_;  // (d_conv, span), tap j first
  std::vector<T> bias_;    // (span)
};

}  // namespace pm::cpu
