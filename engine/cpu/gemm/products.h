// Matrix products on one thread, for loops that are parallel over rows already. OpenBLAS runs on the calling thread alone when
// it is called inside a parallel region.
#pragma once
#include <cstdint>
#include <type_traits>

namespace pm::cpu {

// Row-major operands: the pointer to the first value and the distance between rows.
template <typename T>
struct Rows {
  T* data;
  int64_t stride;
  Rows from(int64_t row) const { return {data + row * stride, stride}; }
  operator Rows<const T>() const requires(!std::is_const_v<T>) { return {data, stride}; }
};

// out (rows, columns) = x (rows, in) * weight^T (columns, in) + beta * out
void times_transposed(Rows<const float> x, Rows<const float> weight, Rows<float> out, int64_t rows, int64_t columns,
                      int64_t in, float beta);
void times_transposed(Rows<const double> x, Rows<const double> weight, Rows<double> out, int64_t rows, int64_t columns,
                      int64_t in, double beta);
// dx (rows, in) = dout (rows, columns) * weight (columns, in) + beta * dx
void times(Rows<const float> dout, Rows<const float> weight, Rows<float> dx, int64_t rows, int64_t columns, int64_t in,
           float beta);
void times(Rows<const double> dout, Rows<const double> weight, Rows<double> dx, int64_t rows, int64_t columns,
           int64_t in, double beta);

// Rows that one product should take when many of them share `rows` rows: enough to pay for packing the weights, few enough
// for several cores. Depends on the shape alone.
int64_t rows_per_product(int64_t rows, int64_t features);

// dweight (columns, in), contiguous = dout^T (rows, columns) * x (rows, in), with all threads; call it outside of parallel
// regions. The rows are cut into runs whose sums are added in order: the same bits for any number of threads.
void weight_gradient(Rows<const float> dout, Rows<const float> x, float* dweight, int64_t rows, int64_t columns,
                     int64_t in);
void weight_gradient(Rows<const double> dout, Rows<const double> x, double* dweight, int64_t rows, int64_t columns,
                     int64_t in);

}  // namespace pm::cpu
