// The part of cohort.h that opens every slide.
#include <omp.h>

#include <algorithm>
#include <atomic>
#include <exception>
#include <new>
#include <thread>

#include "engine/core/check.h"
#include "io/data/cohort.h"
#include "io/slide/slide.h"

namespace pm::io {
namespace {

SlideCheck check_slide(const SlideRow& row, int64_t index, const SlideCheckOptions& options) {
  SlideCheck check;
  check.slide = index;
  SlideOptions slide;
  slide.mpp = options.mpp;
  slide.slide_mpp = row.mpp ? row.mpp : options.slide_mpp;
  slide.stop = options.stop;
  try {
    const SlidePlan plan = plan_slide(row.path, slide);
    check.format = plan.format;
    check.mpp = plan.slide_mpp;
    check.width = plan.width;
    check.height = plan.height;
    check.read_bytes = plan.read_bytes;
    if (!options.decode) return check;
    const SlideImage read = read_slide(row.path, slide);
    check.width = read.image.width;
    check.height = read.image.height;
    check.tiles = read.tiles;
    check.bad_tiles = read.bad_tiles;
  } catch (const Cancelled&) {
    throw;
  } catch (const std::bad_alloc&) {
    check.error = fmt::format("{}: there is not enough memory to read the slide", row.path);
  } catch (const Error& error) {
    check.error = error.what();
  }
  return check;
}

}  // namespace

std::vector<SlideCheck> check_slides(const std::vector<SlideRow>& rows, const SlideCheckOptions& options) {
  const auto count = static_cast<int64_t>(rows.size());
  const int64_t cores = std::max<int64_t>(1, std::thread::hardware_concurrency());
  const int64_t threads =
      std::clamp<int64_t>(options.threads > 0 ? options.threads : cores, 1, std::max<int64_t>(1, count));
  std::vector<std::optional<SlideCheck>> checks(rows.size());
  std::atomic<int64_t> next{0};
  const auto work = [&] {
    omp_set_num_threads(static_cast<int>(std::max<int64_t>(1, cores / threads)));  // of this thread alone
    for (int64_t i = next++; i < count && !options.stop.stop_requested(); i = next++) {
      try {
        checks[static_cast<size_t>(i)] = check_slide(rows[static_cast<size_t>(i)], i, options);
      } catch (const Cancelled&) {
        return;
      }
    }
  };
  {
    std::vector<std::jthread> pool;
    for (int64_t i = 0; i < threads; ++i) pool.emplace_back(work);
  }
  std::vector<SlideCheck> result;
  for (std::optional<SlideCheck>& check : checks) {
    if (check) result.push_back(std::move(*check));
  }
  return result;
}

}  // namespace pm::io
