// The selective scan as one walk over time per channel: what scripts/bench/cpu_against_pytorch.py gives to PyTorch. A plain C
// interface, so that it compiles in a second. No gate and no skip: PyTorch does those.
//   s_i[n] = exp(delta_i * A[n]) * s_{i-1}[n] + delta_i * B_i[n] * u_i,   y_i = sum_n C_i[n] * s_i[n]
// delta, u, y: (seq_len, d_inner); A: (d_inner, N); B, C: (seq_len, N); states: (d_inner, seq_len, N), kept for the gradient.
#include <cmath>
#include <cstdint>

namespace {
constexpr int N = 16;
}

extern "C" void scan_forward(const float* delta, const float* u, const float* A, const float* B, const float* C,
                             float* y, float* states, int64_t seq_len, int64_t d_inner) {
#pragma omp parallel for schedule(dynamic)
  for (int64_t c = 0; c < d_inner; ++c) {
    float s[N] = {};
    for (int64_t t = 0; t < seq_len; ++t) {
      const float d = delta[t * d_inner + c], du = d * u[t * d_inner + c];
      float sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int n = 0; n < N; ++n) {
        s[n] = std::exp(d * A[c * N + n]) * s[n] + du * B[t * N + n];
        sum += s[n] * C[t * N + n];
      }
      y[t * d_inner + c] = sum;
      if (states != nullptr) {
        for (int n = 0; n < N; ++n) states[(c * seq_len + t) * N + n] = s[n];
      }
    }
  }
}

// dB, dC: (d_inner, seq_len, N), to be summed over the channels; dA: (d_inner, N).
extern "C" void scan_backward(const float* dy, const float* delta, const float* u, const float* A, const float* B,
                              const float* C, const float* states, float* ddelta, float* du, float* dA, float* dB,
                              float* dC, int64_t seq_len, int64_t d_inner) {
#pragma omp parallel for schedule(dynamic)
  for (int64_t c = 0; c < d_inner; ++c) {
    float q[N] = {}, sum_A[N] = {};
    const float zero[N] = {};
    for (int64_t t = seq_len - 1; t >= 0; --t) {
      const int64_t at = t * d_inner + c, row = (c * seq_len + t) * N;
      const float d = delta[at], x = u[at], g = dy[at];
      const float *s = states + row, *previous = t == 0 ? zero : s - N;
      float to_delta = 0, to_u = 0;
#pragma omp simd reduction(+ : to_delta, to_u)
      for (int n = 0; n < N; ++n) {
        const float decay = std::exp(d * A[c * N + n]), h = C[t * N + n] * g + q[n];
        q[n] = decay * h;
        const float carried = q[n] * previous[n];
        to_delta += carried * A[c * N + n] + h * B[t * N + n] * x;
        to_u += h * B[t * N + n] * d;
        sum_A[n] += carried * d;
        dB[row + n] = h * d * x;
        dC[row + n] = g * s[n];
      }
      ddelta[at] = to_delta;
      du[at] = to_u;
    }
    for (int n = 0; n < N; ++n) dA[c * N + n] = sum_A[n];
  }
}
