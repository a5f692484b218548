#include "engine/ops/conv/causal_conv1d.h"

#include <algorithm>
#include <vector>

#include "engine/cpu/conv/convolution.h"
#include "engine/cpu/core/dispatch.h"

namespace pm::cpu {
namespace {

constexpr int64_t kRuns = 64;  // strands of the weight gradient, whatever the number of threads

// Gradient of one chunk of tokens [begin, end) of one sequence. sums: (d_conv + 1, span), the last row for dbias.
template <typename T>
[[gnu::always_inline]] inline void chunk_grad(const Convolution<T>& conv, const T* dout, const T* x, T* dx,
                                              int64_t begin, int64_t end, int64_t seq_len, int64_t d_inner,
                                              int64_t d_conv, bool reverse, std::vector<T>& buffer, double* sums) {
  // dx of this chunk needs dpre up to halo tokens beyond it; outside the sequence that is zero.
  const int64_t low = reverse ? begin - conv.halo() : begin, high = reverse ? end : end + conv.halo();
  buffer.assign(static_cast<size_t>((high - low) * d_inner), T{0});
  const auto dpre_at = [&](int64_t token) { return buffer.data() + (token - low) * d_inner; };
  conv.for_spans(
      std::max<int64_t>(0, low),
      std::min(seq_len, high), [&](int64_t token, int64_t elements, int64_t taps) __attribute__((always_inline)) {
        T* dpre = dpre_at(token);
        const T* upstream = dout + token * d_inner;
        conv.convolve(dpre, x + token * d_inner, elements, taps);
#pragma omp simd
        for (int64_t i = 0; i < elements; ++i) {
          const T s = sigmoid(dpre[i]);
          dpre[i] = upstream[i] * s * (T{1} + dpre[i] * (T{1} - s));
        }
      });
  conv.for_spans(
      begin, end, [&](int64_t token, int64_t elements, int64_t taps) __attribute__((always_inline)) {
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
      conv.run(x, out, begin, std::min(args.seq_len, begin + tokens));
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
        with_best_isa([&]() PM_ISA_BODY {
          chunk_grad(conv, static_cast<const T*>(args.dout) + sequence, static_cast<const T*>(args.x) + sequence,
                     static_cast<T*>(args.dx) + sequence, begin, std::min(args.seq_len, begin + tokens), args.seq_len,
                     args.d_inner, args.d_conv, args.reverse, buffer, sums.data() + run * run_sums);
        });
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
