// Tokens are walked in spans of several whole tokens, so that the inner loops run over a few hundred neighbouring elements
// and vectorise even when d_inner is 6. Taps, bias and gradient sums are repeated once per token of a span to match.
#include "engine/ops/conv/causal_conv1d.h"

#include <algorithm>
#include <vector>

#include "engine/cpu/core/dispatch.h"
#include "engine/cpu/core/fast_exp.h"

namespace pm::cpu {
namespace {

constexpr int64_t kSpan = 256;    // elements of a span, or one token if that is longer
constexpr int64_t kChunk = 8192;  // elements of a unit of parallel work
constexpr int64_t kRuns = 64;     // strands of the weight gradient, whatever the number of threads

template <typename T>
T sigmoid(T v) {
  return T{1} / (T{1} + fast_exp(-v));
}

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
  int64_t chunk_tokens() const { return std::max<int64_t>(1, kChunk / span_) * span_tokens_; }

  // Calls fn(token, elements, taps) for spans that cover tokens [begin, end). Tokens near the start of the walk see
  // fewer taps and come one by one.
  template <typename Fn>
  void for_spans(int64_t begin, int64_t end, Fn&& fn) const {
    const int64_t full_begin = reverse_ ? 0 : halo(), full_end = reverse_ ? seq_len_ - halo() : seq_len_;
    for (int64_t token = begin; token < end;) {
      const bool full = full_begin <= token && token < full_end;
      const int64_t count = full ? std::min({span_tokens_, end - token, full_end - token}) : 1;
      fn(token, count * d_inner_, full ? d_conv_ : (reverse_ ? seq_len_ - token : token + 1));
      token += count;
    }
  }

  // pre: `elements` values; x points at the element of tap 0.
  void convolve(T* pre, const T* x, int64_t elements, int64_t taps) const {
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
  void transposed(T* dx, const T* dpre, int64_t elements) const {
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
  int64_t seq_len_, d_inner_, d_conv_;
  bool reverse_;
  int64_t span_tokens_, span_;
  std::vector<T> weight_;  // (d_conv, span), tap j first
  std::vector<T> bias_;    // (span)
};

// Gradient of one chunk of tokens [begin, end) of one sequence. sums: (d_conv + 1, span), the last row for dbias.
template <typename T>
void chunk_grad(const Convolution<T>& conv, const T* dout, const T* x, T* dx, int64_t begin, int64_t end,
                int64_t seq_len, int64_t d_inner, int64_t d_conv, bool reverse, std::vector<T>& buffer, double* sums) {
  // dx of this chunk needs dpre up to halo tokens beyond it; outside the sequence that is zero.
  const int64_t low = reverse ? begin - conv.halo() : begin, high = reverse ? end : end + conv.halo();
  buffer.assign(static_cast<size_t>((high - low) * d_inner), T{0});
  const auto dpre_at = [&](int64_t token) { return buffer.data() + (token - low) * d_inner; };
  conv.for_spans(std::max<int64_t>(0, low), std::min(seq_len, high),
                 [&](int64_t token, int64_t elements, int64_t taps) {
                   T* dpre = dpre_at(token);
                   const T* upstream = dout + token * d_inner;
                   conv.convolve(dpre, x + token * d_inner, elements, taps);
#pragma omp simd
                   for (int64_t i = 0; i < elements; ++i) {
                     const T s = sigmoid(dpre[i]);
                     dpre[i] = upstream[i] * s * (T{1} + dpre[i] * (T{1} - s));
                   }
                 });
  conv.for_spans(begin, end, [&](int64_t token, int64_t elements, int64_t taps) {
    const T* dpre = dpre_at(token);
    conv.transposed(dx + token * d_inner, dpre, elements);
    for (int64_t j = 0; j < taps; ++j) {
      const T* x_j = x + token * d_inner - j * conv.tap_step();
      double* sum = sums + j * conv.span();
#pragma omp simd
      for (int64_t i = 0; i < elements; ++i) sum[i] += static_cast<double>(dpre[i] * x_j[i]);
    }
    double* sum = sums + d_conv * conv.span();
#pragma omp simd
    for (int64_t i = 0; i < elements; ++i) sum[i] += static_cast<double>(dpre[i]);
  });
}

}  // namespace

void causal_conv1d(const CausalConv1dArgs& args) {
  dispatch_float(args.dtype, [&]<typename T>() {
    const Convolution<T> conv(static_cast<const T*>(args.weight), static_cast<const T*>(args.bias), args.seq_len,
                              args.d_inner, args.d_conv, args.reverse);
    const int64_t tokens = conv.chunk_tokens(), chunks = (args.seq_len + tokens - 1) / tokens;
#pragma omp parallel for
    for (int64_t chunk = 0; chunk < args.batch * chunks; ++chunk) {
      const int64_t begin = chunk % chunks * tokens, sequence = chunk / chunks * args.seq_len * args.d_inner;
      const T* x = static_cast<const T*>(args.x) + sequence;
      T* out = static_cast<T*>(args.out) + sequence;
      conv.for_spans(begin, std::min(args.seq_len, begin + tokens), [&](int64_t token, int64_t elements, int64_t taps) {
        T* target = out + token * args.d_inner;
        conv.convolve(target, x + token * args.d_inner, elements, taps);
#pragma omp simd
        for (int64_t i = 0; i < elements; ++i) target[i] *= sigmoid(target[i]);
      });
    }
  });
}

void causal_conv1d_grad(const CausalConv1dGradArgs& args) {
  dispatch_float(args.dtype, [&]<typename T>() {
    const Convolution<T> conv(static_cast<const T*>(args.weight), static_cast<const T*>(args.bias), args.seq_len,
                              args.d_inner, args.d_conv, args.reverse);
    const int64_t tokens = conv.chunk_tokens(), chunks = (args.seq_len + tokens - 1) / tokens;
    const int64_t run_sums = (args.d_conv + 1) * conv.span();
    std::vector<double> sums(static_cast<size_t>(kRuns * run_sums), 0.0);
#pragma omp parallel for schedule(static, 1)
    for (int64_t run = 0; run < kRuns; ++run) {
      std::vector<T> buffer;
      for (int64_t chunk = run; chunk < args.batch * chunks; chunk += kRuns) {
        const int64_t begin = chunk % chunks * tokens, sequence = chunk / chunks * args.seq_len * args.d_inner;
        chunk_grad(conv, static_cast<const T*>(args.dout) + sequence, static_cast<const T*>(args.x) + sequence,
                   static_cast<T*>(args.dx) + sequence, begin, std::min(args.seq_len, begin + tokens), args.seq_len,
                   args.d_inner, args.d_conv, args.reverse, buffer, sums.data() + run * run_sums);
      }
    }
    const auto total = [&](int64_t row, int64_t channel) {
      double sum = 0.0;
      for (int64_t run = 0; run < kRuns; ++run) {
        const double* run_row = sums.data() + run * run_sums + row * conv.span();
        for (int64_t i = channel; i < conv.span(); i += args.d_inner) sum += run_row[i];
      }
      return static_cast<T>(sum);
    };
    T* dweight = static_cast<T*>(args.dweight);
    T* dbias = static_cast<T*>(args.dbias);
    for (int64_t channel = 0; channel < args.d_inner; ++channel) {
      for (int64_t j = 0; j < args.d_conv; ++j)
        dweight[channel * args.d_conv + args.d_conv - 1 - j] = total(j, channel);
      dbias[channel] = total(args.d_conv, channel);
    }
  });
}

}  // namespace pm::cpu
