#include "apps/memory_check.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "apps/common.h"
#include "apps/peak_memory.h"
#include "engine/core/check.h"

namespace pm::app {
namespace {

constexpr double kUsableShare = 0.95;  // the rest is for the driver, cuBLAS and fragments

// Of a training step over the slide at a resolution `shrink` times coarser.
double need(PeakMemory& memory, const SlideSize& slide, double shrink = 1.0) {
  const auto side = [&](int64_t pixels) {
    return std::max<int64_t>(1, static_cast<int64_t>(std::ceil(static_cast<double>(pixels) / shrink)));
  };
  return static_cast<double>(memory.training(1, side(slide.height), side(slide.width)));
}

// By the number of regions, which memory grows with, then by pixels.
std::vector<const SlideSize*> largest_first(const std::vector<SlideSize>& slides, int64_t region_size) {
  const auto size = [&](const SlideSize* slide) {
    const auto regions = [&](int64_t pixels) { return (pixels + region_size - 1) / region_size; };
    return std::pair(regions(slide->height) * regions(slide->width), slide->height * slide->width);
  };
  std::vector<const SlideSize*> ordered;
  for (const SlideSize& slide : slides) ordered.push_back(&slide);
  std::stable_sort(ordered.begin(), ordered.end(), [&](const auto* a, const auto* b) { return size(a) > size(b); });
  return ordered;
}

// The finest resolution, to 0.1 micrometres, at which the slide fits; 0 when none up to a hundred times coarser does.
double fitting_mpp(PeakMemory& memory, const SlideSize& slide, double mpp, double limit) {
  double fits = 100.0, too_fine = 1.0;
  if (need(memory, slide, fits) > limit) return 0.0;
  for (int i = 0; i < 40; ++i) {
    const double middle = 0.5 * (fits + too_fine);
    (need(memory, slide, middle) <= limit ? fits : too_fine) = middle;
  }
  return std::ceil(10.0 * mpp * fits) / 10.0;
}

}  // namespace

void require_memory(Context& ctx, const ModelConfig& config, DType activation, const std::vector<SlideSize>& slides,
                    double mpp) {
  const double limit = kUsableShare * static_cast<double>(ctx.backend().total_bytes());
  PeakMemory memory(config, ctx.device(), activation);
  const std::vector<const SlideSize*> ordered = largest_first(slides, config.region_size);
  const auto fits = [&](const SlideSize* slide) { return need(memory, *slide) <= limit; };
  const auto too_large =
      std::find_if(ordered.begin(), ordered.end(), fits) - ordered.begin();  // smaller ones fit as well
  if (too_large == 0) return;
  const SlideSize& largest = *ordered.front();
  std::string knobs;
  const double coarser = fitting_mpp(memory, largest, mpp, limit);
  if (coarser > 0.0) knobs += fmt::format("; --mpp {:g} fits", coarser);
  if (!ctx.device().is_cpu() && activation == DType::f32) {
    PeakMemory half(config, ctx.device(), DType::bf16);
    const double bytes = need(half, largest);
    knobs +=
        fmt::format("; --precision bf16 {} ({})", bytes <= limit ? "fits" : "does not suffice alone", byte_size(bytes));
  }
  throw OutOfMemoryError(fmt::format(
      "slide {}: {} x {} pixels at {:g} um per pixel; a training step over it takes about {}, {} has {}{}{}",
      largest.slide_id, largest.width, largest.height, mpp, byte_size(need(memory, largest)), ctx.device().str(),
      byte_size(static_cast<double>(ctx.backend().total_bytes())),
      too_large > 1 ? fmt::format(" ({} slides are too large, this one is the largest)", too_large) : "", knobs));
}

void require_batch_memory(Context& ctx, const ModelConfig& config, DType activation, int64_t batch, int64_t size) {
  const auto total = static_cast<double>(ctx.backend().total_bytes());
  PeakMemory memory(config, ctx.device(), activation);
  const auto need = [&](int64_t images) { return static_cast<double>(memory.training(images, size, size)); };
  int64_t fits = batch;
  while (fits > 0 && need(fits) > kUsableShare * total) fits /= 2;
  if (fits == batch) return;
  throw OutOfMemoryError(
      fmt::format("a step on {} images of {} x {} pixels takes about {}, {} has {}; {}", batch, size, size,
                  byte_size(need(batch)), ctx.device().str(), byte_size(total),
                  fits > 0 ? fmt::format("--batch {} fits", fits) : "not even --batch 1 fits: lower --image-size"));
}

}  // namespace pm::app
