#include "engine/cpu/gemm/products.h"

#include <cblas.h>

#include <algorithm>
#include <memory>

namespace pm::cpu {
namespace {

constexpr int64_t kRows = int64_t{1} << 22;  // of one BLAS call: its sizes are 32-bit
constexpr int64_t kColumnBlock = 64;         // columns of a weight gradient that one task computes
constexpr int64_t kRuns = 16, kRunRows = 1024;

// c = op(a) * op(b) + beta * c, row-major
void gemm(CBLAS_TRANSPOSE op_a, CBLAS_TRANSPOSE op_b, int64_t m, int64_t n, int64_t k, Rows<const float> a,
          Rows<const float> b, float beta, Rows<float> c) {
  cblas_sgemm(CblasRowMajor, op_a, op_b, static_cast<blasint>(m), static_cast<blasint>(n), static_cast<blasint>(k),
              1.0f, a.data, static_cast<blasint>(a.stride), b.data, static_cast<blasint>(b.stride), beta, c.data,
              static_cast<blasint>(c.stride));
}
void gemm(CBLAS_TRANSPOSE op_a, CBLAS_TRANSPOSE op_b, int64_t m, int64_t n, int64_t k, Rows<const double> a,
          Rows<const double> b, double beta, Rows<double> c) {
  cblas_dgemm(CblasRowMajor, op_a, op_b, static_cast<blasint>(m), static_cast<blasint>(n), static_cast<blasint>(k), 1.0,
              a.data, static_cast<blasint>(a.stride), b.data, static_cast<blasint>(b.stride), beta, c.data,
              static_cast<blasint>(c.stride));
}

// columns x in of rows [begin, end), one thread.
template <typename T>
void run_gradient(Rows<const T> dout, Rows<const T> x, T* dweight, int64_t begin, int64_t end, int64_t columns,
                  int64_t in) {
  if (begin >= end) std::fill_n(dweight, columns * in, T(0));
  for (int64_t row = begin; row < end; row += kRows) {
    gemm(CblasTrans, CblasNoTrans, columns, in, std::min(kRows, end - row), dout.from(row), x.from(row),
         row == begin ? T(0) : T(1), {dweight, in});
  }
}

template <typename T>
void weight_gradient_of(Rows<const T> dout, Rows<const T> x, T* dweight, int64_t rows, int64_t columns, int64_t in) {
  const int64_t runs = std::clamp<int64_t>(rows / kRunRows, 1, kRuns), run_rows = (rows + runs - 1) / runs;
  const int64_t blocks = (columns + kColumnBlock - 1) / kColumnBlock, values = columns * in;
  const auto sums = runs == 1 ? nullptr : std::make_unique_for_overwrite<T[]>(static_cast<size_t>(runs * values));
#pragma omp parallel
  {
#pragma omp for schedule(dynamic)
    for (int64_t task = 0; task < runs * blocks; ++task) {
      const int64_t run = task / blocks, column = task % blocks * kColumnBlock;
      T* target = (runs == 1 ? dweight : sums.get() + run * values) + column * in;
      run_gradient<T>({dout.data + column, dout.stride}, x, target, run * run_rows,
                      std::min(rows, (run + 1) * run_rows), std::min(kColumnBlock, columns - column), in);
    }
    if (runs > 1) {
#pragma omp for
      for (int64_t i = 0; i < values; ++i) {
        double sum = 0.0;
        for (int64_t run = 0; run < runs; ++run)
          sum += static_cast<double>(sums[static_cast<size_t>(run * values + i)]);
        dweight[i] = static_cast<T>(sum);
      }
    }
  }
}

}  // namespace

void times_transposed(Rows<const float> x, Rows<const float> weight, Rows<float> out, int64_t rows, int64_t columns,
                      int64_t in, float beta) {
  gemm(CblasNoTrans, CblasTrans, rows, columns, in, x, weight, beta, out);
}
void times_transposed(Rows<const double> x, Rows<const double> weight, Rows<double> out, int64_t rows, int64_t columns,
                      int64_t in, double beta) {
  gemm(CblasNoTrans, CblasTrans, rows, columns, in, x, weight, beta, out);
}
void times(Rows<const float> dout, Rows<const float> weight, Rows<float> dx, int64_t rows, int64_t columns, int64_t in,
           float beta) {
  gemm(CblasNoTrans, CblasNoTrans, rows, in, columns, dout, weight, beta, dx);
}
void times(Rows<const double> dout, Rows<const double> weight, Rows<double> dx, int64_t rows, int64_t columns,
           int64_t in, double beta) {
  gemm(CblasNoTrans, CblasNoTrans, rows, in, columns, dout, weight, beta, dx);
}

int64_t rows_per_product(int64_t rows, int64_t features) {
  const int64_t worthwhile = std::clamp<int64_t>(24'576 / std::max<int64_t>(1, features), 64, 512);
  const int64_t quarter = (rows / 4 + 15) / 16 * 16;
  return std::max<int64_t>(32, std::min(worthwhile, quarter));
}

void weight_gradient(Rows<const float> dout, Rows<const float> x, float* dweight, int64_t rows, int64_t columns,
                     int64_t in) {
  weight_gradient_of(dout, x, dweight, rows, columns, in);
}
void weight_gradient(Rows<const double> dout, Rows<const double> x, double* dweight, int64_t rows, int64_t columns,
                     int64_t in) {
  weight_gradient_of(dout, x, dweight, rows, columns, in);
}

}  // namespace pm::cpu
