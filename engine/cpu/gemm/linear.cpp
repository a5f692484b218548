// Two ways to the same sums. Plain loops while a row is short (BLAS packs its operands, which costs more than the product
// there), OpenBLAS above. Both give the same bits in every run with the same number of threads; the plain loops with any.
#include "engine/ops/gemm/linear.h"

#include <cblas.h>

#include <algorithm>
#include <vector>

#include "engine/cpu/core/dispatch.h"

namespace pm::cpu {
namespace {

constexpr int64_t kSmallFeatures = 48;         // plain loops where neither side is wider
constexpr int64_t kBlasRows = int64_t{1} << 22;  // rows of one BLAS call: its sizes are 32-bit
constexpr int64_t kSpanRows = 2048;            // rows of one partial sum in the weight gradient, at least
constexpr int64_t kMaxSpans = 256;

bool is_small(int64_t in_features, int64_t out_features) {
  return in_features <= kSmallFeatures && out_features <= kSmallFeatures;
}

// c = op(a) * op(b) + beta * c, row-major
void gemm(CBLAS_TRANSPOSE op_a, CBLAS_TRANSPOSE op_b, int64_t m, int64_t n, int64_t k, const float* a, int64_t lda,
          const float* b, int64_t ldb, float beta, float* c, int64_t ldc) {
  cblas_sgemm(CblasRowMajor, op_a, op_b, static_cast<blasint>(m), static_cast<blasint>(n), static_cast<blasint>(k), 1.0f, a,
              static_cast<blasint>(lda), b, static_cast<blasint>(ldb), beta, c, static_cast<blasint>(ldc));
}
void gemm(CBLAS_TRANSPOSE op_a, CBLAS_TRANSPOSE op_b, int64_t m, int64_t n, int64_t k, const double* a, int64_t lda,
          const double* b, int64_t ldb, double beta, double* c, int64_t ldc) {
  cblas_dgemm(CblasRowMajor, op_a, op_b, static_cast<blasint>(m), static_cast<blasint>(n), static_cast<blasint>(k), 1.0, a,
              static_cast<blasint>(lda), b, static_cast<blasint>(ldb), beta, c, static_cast<blasint>(ldc));
}

template <typename Fn>
void for_row_chunks(int64_t rows, Fn&& fn) {
  for (int64_t begin = 0; begin < rows; begin += kBlasRows) fn(begin, std::min(kBlasRows, rows - begin));
}

// out (rows, columns) += bias (columns)
template <typename T>
void add_bias(T* out, const T* bias, int64_t rows, int64_t columns) {
#pragma omp parallel for
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t column = 0; column < columns; ++column) out[row * columns + column] += bias[column];
  }
}

// (rows, columns) -> (columns, rows)
template <typename T>
std::vector<T> transposed(const T* matrix, int64_t rows, int64_t columns) {
  std::vector<T> result(static_cast<size_t>(rows * columns));
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < columns; ++c) result[static_cast<size_t>(c * rows + r)] = matrix[r * columns + c];
  }
  return result;
}

// sum (columns) += value * vector (columns)
template <typename T>
inline void axpy(T* sum, T value, const T* vector, int64_t columns) {
  for (int64_t column = 0; column < columns; ++column) sum[column] += value * vector[column];
}

template <typename T>
void small_linear(const LinearArgs& args) {
  const T* x = static_cast<const T*>(args.x);
  const T* bias = static_cast<const T*>(args.bias);
  const std::vector<T> weight = transposed(static_cast<const T*>(args.weight), args.out_features, args.in_features);
#pragma omp parallel for
  for (int64_t row = 0; row < args.rows; ++row) {
    T sum[kSmallFeatures];
    for (int64_t o = 0; o < args.out_features; ++o) sum[o] = bias != nullptr ? bias[o] : T(0);
    for (int64_t i = 0; i < args.in_features; ++i) {
      axpy(sum, x[row * args.in_features + i], weight.data() + i * args.out_features, args.out_features);
    }
    const T* part = sum;
    for (const LinearOut& group : args.groups) {
      std::copy(part, part + group.features, static_cast<T*>(group.data) + row * group.features);
      part += group.features;
    }
  }
}

template <typename T>
void small_grad_input(const LinearGradInputArgs& args) {
  const T* weight = static_cast<const T*>(args.weight);
  T* dx = static_cast<T*>(args.dx);
#pragma omp parallel for
  for (int64_t row = 0; row < args.rows; ++row) {
    T sum[kSmallFeatures];
    std::fill(sum, sum + args.in_features, T(0));
    const T* weight_row = weight;
    for (const LinearDout& group : args.groups) {
      const T* dout = static_cast<const T*>(group.data) + row * group.features;
      for (int64_t o = 0; o < group.features; ++o, weight_row += args.in_features) {
        axpy(sum, dout[o], weight_row, args.in_features);
      }
    }
    std::copy(sum, sum + args.in_features, dx + row * args.in_features);
  }
}

// Rows are cut into spans that depend on the shape only; their sums are added in order.
template <typename T>
void small_grad_weight(const LinearGradWeightArgs& args) {
  const T* x = static_cast<const T*>(args.x);
  T* dweight = static_cast<T*>(args.dweight);
  const int64_t span_rows = std::max(kSpanRows, (args.rows + kMaxSpans - 1) / kMaxSpans);
  const int64_t spans = (args.rows + span_rows - 1) / span_rows;
  const int64_t size = args.out_features * args.in_features;
  std::vector<T> partials(static_cast<size_t>(spans * size), T(0));
#pragma omp parallel for
  for (int64_t span = 0; span < spans; ++span) {
    for (int64_t row = span * span_rows; row < std::min(args.rows, (span + 1) * span_rows); ++row) {
      T* sum = partials.data() + span * size;
      for (const LinearDout& group : args.groups) {
        const T* dout = static_cast<const T*>(group.data) + row * group.features;
        for (int64_t o = 0; o < group.features; ++o, sum += args.in_features) {
          axpy(sum, dout[o], x + row * args.in_features, args.in_features);
        }
      }
    }
  }
  for (int64_t i = 0; i < size; ++i) {
    double sum = 0.0;
    for (int64_t span = 0; span < spans; ++span) sum += static_cast<double>(partials[static_cast<size_t>(span * size + i)]);
    dweight[i] = static_cast<T>(sum);
  }
}

}  // namespace

void linear(const LinearArgs& args) {
  if (args.rows == 0) return;
  dispatch_float(args.dtype, [&]<typename T>() {
    if (is_small(args.in_features, args.out_features)) return small_linear<T>(args);
    const int64_t in = args.in_features;
    const T* weight = static_cast<const T*>(args.weight);
    const T* bias = static_cast<const T*>(args.bias);
    for (const LinearOut& group : args.groups) {
      const int64_t columns = group.features;
      T* out = static_cast<T*>(group.data);
      for_row_chunks(args.rows, [&](int64_t begin, int64_t rows) {
        gemm(CblasNoTrans, CblasTrans, rows, columns, in, static_cast<const T*>(args.x) + begin * in, in, weight, in, T(0),
             out + begin * columns, columns);
      });
      if (bias != nullptr) {
        add_bias(out, bias, args.rows, columns);
        bias += columns;
      }
      weight += columns * in;
    }
  });
}

void linear_grad_input(const LinearGradInputArgs& args) {
  if (args.rows == 0) return;
  dispatch_float(args.dtype, [&]<typename T>() {
    if (is_small(args.in_features, args.out_features)) return small_grad_input<T>(args);
    const int64_t in = args.in_features;
    const T* weight = static_cast<const T*>(args.weight);
    T beta = 0;
    for (const LinearDout& group : args.groups) {
      const int64_t columns = group.features;
      const T* dout = static_cast<const T*>(group.data);
      for_row_chunks(args.rows, [&](int64_t begin, int64_t rows) {
        gemm(CblasNoTrans, CblasNoTrans, rows, in, columns, dout + begin * columns, columns, weight, in, beta,
             static_cast<T*>(args.dx) + begin * in, in);
      });
      beta = 1;
      weight += columns * in;
    }
  });
}

void linear_grad_weight(const LinearGradWeightArgs& args) {
  dispatch_float(args.dtype, [&]<typename T>() {
    if (args.rows == 0 || is_small(args.in_features, args.out_features)) return small_grad_weight<T>(args);
    const int64_t in = args.in_features;
    T* dweight = static_cast<T*>(args.dweight);
    for (const LinearDout& group : args.groups) {
      const int64_t columns = group.features;
      const T* dout = static_cast<const T*>(group.data);
      for_row_chunks(args.rows, [&](int64_t begin, int64_t rows) {
        gemm(CblasTrans, CblasNoTrans, columns, in, rows, dout + begin * columns, columns,
             static_cast<const T*>(args.x) + begin * in, in, begin == 0 ? T(0) : T(1), dweight, in);
      });
      dweight += columns * in;
    }
  });
}

void linear_grad_bias(const LinearGradBiasArgs& args) {
  dispatch_float(args.dtype, [&]<typename T>() {
    const T* dout = static_cast<const T*>(args.dout);
    T* dbias = static_cast<T*>(args.dbias);
#pragma omp parallel for
    for (int64_t column = 0; column < args.out_features; ++column) {
      double sum = 0.0;
      for (int64_t row = 0; row < args.rows; ++row) sum += static_cast<double>(dout[row * args.out_features + column]);
      dbias[column] = static_cast<T>(sum);
    }
  });
}

}  // namespace pm::cpu
