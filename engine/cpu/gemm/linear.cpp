// Products are calls of OpenBLAS on single threads, each for a run of rows that depends on the shape alone: the same bits for
// any number of threads.
#include "engine/ops/gemm/linear.h"

#include <algorithm>
#include <vector>

#include "engine/cpu/core/dispatch.h"
#include "engine/cpu/gemm/products.h"

namespace pm::cpu {
namespace {

// fn(begin, rows) for all rows, in parallel.
template <typename Fn>
void for_row_chunks(int64_t rows, int64_t features, Fn&& fn) {
  const int64_t step = rows_per_product(rows, features);
#pragma omp parallel for schedule(dynamic)
  for (int64_t begin = 0; begin < rows; begin += step) fn(begin, std::min(step, rows - begin));
}

// out (rows, columns) += bias (columns)
template <typename T>
void add_bias(T* out, const T* bias, int64_t rows, int64_t columns) {
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t column = 0; column < columns; ++column) out[row * columns + column] += bias[column];
  }
}

}  // namespace

void linear(const LinearArgs& args) {
  if (args.rows == 0) return;
  dispatch_float(args.dtype, [&]<typename T>() {
    const int64_t in = args.in_features;
    const Rows<const T> x{static_cast<const T*>(args.x), in};
    for_row_chunks(args.rows, std::max(in, args.out_features), [&](int64_t begin, int64_t rows) {
      const T* weight = static_cast<const T*>(args.weight);
      const T* bias = static_cast<const T*>(args.bias);
      for (const LinearOut& group : args.groups) {
        const int64_t columns = group.features;
        T* out = static_cast<T*>(group.data) + begin * columns;
        const T* addend = static_cast<const T*>(group.addend);
        if (addend != nullptr && group.addend != group.data) std::copy_n(addend + begin * columns, rows * columns, out);
        times_transposed(x.from(begin), {weight, in}, {out, columns}, rows, columns, in,
                         addend != nullptr ? T(1) : T(0));
        if (bias != nullptr) {
          add_bias(out, bias, rows, columns);
          bias += columns;
        }
        weight += columns * in;
      }
    });
  });
}

void linear_grad_input(const LinearGradInputArgs& args) {
  if (args.rows == 0) return;
  dispatch_float(args.dtype, [&]<typename T>() {
    const int64_t in = args.in_features;
    const Rows<T> dx{static_cast<T*>(args.dx), in};
    for_row_chunks(args.rows, std::max(in, args.out_features), [&](int64_t begin, int64_t rows) {
      const T* weight = static_cast<const T*>(args.weight);
      T beta = 0;
      for (const LinearDout& group : args.groups) {
        const int64_t columns = group.features;
        times(Rows<const T>{static_cast<const T*>(group.data), columns}.from(begin), {weight, in}, dx.from(begin), rows,
              columns, in, beta);
        beta = 1;
        weight += columns * in;
      }
    });
  });
}

void linear_grad_weight(const LinearGradWeightArgs& args) {
  dispatch_float(args.dtype, [&]<typename T>() {
    const int64_t in = args.in_features;
    T* dweight = static_cast<T*>(args.dweight);
    for (const LinearDout& group : args.groups) {
      weight_gradient({static_cast<const T*>(group.data), group.features}, {static_cast<const T*>(args.x), in}, dweight,
                      args.rows, group.features, in);
      dweight += group.features * in;
    }
  });
}

void linear_grad_bias(const LinearGradBiasArgs& args) {
  dispatch_float(args.dtype, [&]<typename T>() {
    const T* dout = static_cast<const T*>(args.dout);
    std::vector<double> sum(static_cast<size_t>(args.out_features), 0.0);
    for (int64_t row = 0; row < args.rows; ++row) {
      for (int64_t column = 0; column < args.out_features; ++column) {
        sum[static_cast<size_t>(column)] += static_cast<double>(dout[row * args.out_features + column]);
      }
    }
    std::transform(sum.begin(), sum.end(), static_cast<T*>(args.dbias),
                   [](double value) { return static_cast<T>(value); });
  });
}

}  // namespace pm::cpu
