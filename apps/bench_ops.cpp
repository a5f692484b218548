// bench ops: single operators, against what their bytes and exponentials take at least.
#include <algorithm>

#include "apps/bench.h"
#include "autograd/ops/selective_scan.h"
#include "engine/core/check.h"
#include "engine/ops/elementwise/uniform.h"

namespace pm::app {
namespace {

struct ScanShape {
  int64_t batch, d_inner, seq_len;
};

void bench_scan(Context& ctx, const BenchOptions& options, const ScanShape& shape, DType dtype, BenchReport& report) {
  const auto random = [&](const Shape& s, DType type, double low, double high) {
    return ops::uniform(ctx, s, type, low, high);
  };
  const int64_t n = options.d_state;
  const Shape wide{shape.batch, shape.seq_len, shape.d_inner}, narrow{shape.batch, shape.seq_len, n};
  const DType param = param_dtype(dtype);
  std::vector<Variable> v;
  for (const Tensor& t :
       {random(wide, dtype, -1, 1), random(wide, dtype, -1, 1), random({shape.d_inner, n}, param, -4, -0.5),
        random(narrow, dtype, -1, 1), random(narrow, dtype, -1, 1), random({shape.d_inner}, param, -1, 1),
        random(wide, dtype, -1, 1), random({shape.d_inner}, param, -6, -2)}) {
    v.emplace_back(t, /*requires_grad=*/true);
  }
  const Tensor dout = random(wide, dtype, -1, 1);
  const auto forward = [&] {
    return selective_scan(ctx, v[0], v[1], v[2], v[3], v[4], v[5], v[6], v[7], /*reverse=*/false);
  };
  const double elements = static_cast<double>(shape.batch * shape.seq_len);
  const double bytes_per_value = static_cast<double>(size_of(dtype));
  for (const bool with_backward : {false, true}) {
    ctx.backend().reset_peak();
    const double ms = median_ms(ctx, options.repeats, true, [&] {
      if (!with_backward) {
        const NoGrad no_grad(ctx);
        forward();
        return;
      }
      backward(ctx, forward(), dout);
      for (Variable& leaf : v) leaf.clear_grad();
    });
    // Forward: u, delta, z in, out out, B and C in. Backward: the same again, dout in, four gradients of that size out.
    const double wide_values = with_backward ? 12.0 : 4.0, narrow_values = with_backward ? 6.0 : 2.0;
    const double bytes = elements * bytes_per_value *
                         (wide_values * static_cast<double>(shape.d_inner) + narrow_values * static_cast<double>(n));
    const double exps = elements * static_cast<double>(shape.d_inner * n) * (with_backward ? 2.0 : 1.0);
    const double floor_ms = 1e3 * std::max(bytes / kBytesPerSecond, exps / kExpsPerSecond);
    const double peak_gb = static_cast<double>(ctx.backend().memory().peak_bytes) / 1e9;
    const char* mode = with_backward ? "forward+backward" : "forward";
    const double gb_per_s = bytes / ms / 1e6, gexp_per_s = exps / ms / 1e6;
    nlohmann::ordered_json measured = {
        {"ms", ms}, {"gb_per_s", gb_per_s}, {"gexp_per_s", gexp_per_s}, {"peak_gb", peak_gb}};
    std::string share = "-";
    if (!ctx.device().is_cpu()) {
      measured["floor_share"] = floor_ms / ms;
      share = fmt::format("{:.1f} %", 100.0 * floor_ms / ms);
    }
    report.add({{"bench", "ops"},
                {"op", "selective_scan"},
                {"batch", shape.batch},
                {"d_inner", shape.d_inner},
                {"seq_len", shape.seq_len},
                {"d_state", n},
                {"precision", options.run.precision},
                {"mode", mode}},
               measured,
               fmt::format("{:<16} {:>5} {:>8} {:>9} {:<17} {:>10.3f} {:>9.1f} {:>9.1f} {:>8}", "selective_scan",
                           shape.batch, shape.d_inner, shape.seq_len, mode, ms, gb_per_s, gexp_per_s, share));
  }
}

}  // namespace

int bench_ops(const BenchOptions& options) {
  BenchReport report(options);
  const auto ctx = make_context(options.run);
  const DType dtype = activation_type(options.run, ctx->device());
  std::vector<ScanShape> shapes = {
      {1, 6, 1'048'576}, {1, 6, 8'388'608}, {1, 96, 524'288}, {1, 384, 131'072}, {64, 384, 785}};
  if (ctx->device().is_cpu()) shapes = {{1, 6, 50'176}, {1, 96, 6'272}, {1, 384, 784}};
  if (options.d_inner > 0 || options.seq_len > 0) {
    shapes = {{options.batch, std::max<int64_t>(options.d_inner, 1), std::max<int64_t>(options.seq_len, 1)}};
  }
  if (!options.run.json) {
    fmt::print("{:<16} {:>5} {:>8} {:>9} {:<17} {:>10} {:>9} {:>9} {:>8}\n", "operator", "batch", "d_inner", "seq_len",
               "mode", "ms", "GB/s", "Gexp/s", "of floor");
  }
  for (const ScanShape& shape : shapes) bench_scan(*ctx, options, shape, dtype, report);
  return report.finish();
}

}  // namespace pm::app
