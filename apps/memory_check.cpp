#include "apps/memory_check.h"

#include <algorithm>
#include <cmath>

#include "apps/common.h"
#include "engine/core/check.h"
#include "layers/model/cost.h"

namespace pm::app {
namespace {

constexpr double kUsableShare = 0.95;  // the rest is for the driver, cuBLAS and fragments

double need(const ModelConfig& config, const SlideSize& slide, double shrink, DType activation) {
  const auto side = [&](int64_t pixels) {
    return std::max<int64_t>(1, static_cast<int64_t>(std::ceil(static_cast<double>(pixels) / shrink)));
  };
  return model_cost(config, side(slide.height), side(slide.width), activation).training_bytes;
}

// The finest resolution, to 0.1 micrometres, at which the slide fits; 0 when none up to a hundred times coarser does.
double fitting_mpp(const ModelConfig& config, const SlideSize& slide, double mpp, DType activation, double limit) {
  double fits = 100.0, too_fine = 1.0;
  if (need(config, slide, fits, activation) > limit) return 0.0;
  for (int i = 0; i < 40; ++i) {
    const double middle = 0.5 * (fits + too_fine);
    (need(config, slide, middle, activation) <= limit ? fits : too_fine) = middle;
  }
  return std::ceil(10.0 * mpp * fits) / 10.0;
}

}  // namespace

void require_memory(Context& ctx, const ModelConfig& config, DType activation, const std::vector<SlideSize>& slides,
                    double mpp) {
  const double limit = kUsableShare * static_cast<double>(ctx.backend().total_bytes());
  const SlideSize* largest = nullptr;
  double most = 0.0;
  int64_t too_large = 0;
  for (const SlideSize& slide : slides) {
    const double bytes = need(config, slide, 1.0, activation);
    if (bytes > limit) ++too_large;
    if (bytes <= most) continue;
    most = bytes;
    largest = &slide;
  }
  if (too_large == 0) return;
  std::string knobs;
  const double coarser = fitting_mpp(config, *largest, mpp, activation, limit);
  if (coarser > 0.0) knobs += fmt::format("; --mpp {:g} fits", coarser);
  if (!ctx.device().is_cpu() && activation == DType::f32) {
    const double bytes = need(config, *largest, 1.0, DType::bf16);
    knobs +=
        fmt::format("; --precision bf16 {} ({})", bytes <= limit ? "fits" : "does not suffice alone", byte_size(bytes));
  }
  throw OutOfMemoryError(fmt::format(
      "slide {}: {} x {} pixels at {:g} um per pixel; a training step over it takes about {}, {} has {}{}{}",
      largest->slide_id, largest->width, largest->height, mpp, byte_size(most), ctx.device().str(),
      byte_size(static_cast<double>(ctx.backend().total_bytes())),
      too_large > 1 ? fmt::format(" ({} slides are too large, this one is the largest)", too_large) : "", knobs));
}

}  // namespace pm::app
