#include "io/synth/synth_cohort.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <numeric>

#include "engine/core/check.h"
#include "engine/core/rng.h"
#include "io/data/atomic_file.h"
#include "io/slide/tiff_writer.h"
#include "io/synth/tissue.h"

namespace pm::io {
namespace {

constexpr uint64_t kCohortStream = uint64_t{0x73796e} << 40;  // "syn": apart from other uses of the seed
constexpr uint64_t kSlideStream = kCohortStream + (uint64_t{1} << 39);
constexpr uint64_t kStreamsPerSlide = 16;
constexpr int64_t kMaxCases = 100'000, kMaxSlidesPerCase = 100, kMaxSide = 65'536;
constexpr double kCensoringRate = 3.0 / 7.0;  // of the hazard

void check_options(const SynthOptions& o) {
  PM_CHECK(o.folds >= 2 && o.folds <= 1000, ConfigError, "folds must be 2 to 1000, got {}", o.folds);
  PM_CHECK(o.cases >= o.folds && o.cases <= kMaxCases, ConfigError,
           "a cohort needs at least one case per fold ({}) and at most {}, got {} cases", o.folds, kMaxCases, o.cases);
  PM_CHECK(o.slides_per_case >= 1 && o.slides_per_case <= kMaxSlidesPerCase, ConfigError,
           "slides per case must be 1 to {}, got {}", kMaxSlidesPerCase, o.slides_per_case);
  PM_CHECK(std::isfinite(o.mpp) && o.mpp > 0.0 && o.mpp <= kMaxSynthMpp, ConfigError,
           "mpp must be above 0 and at most {:g} (coarser pixels lose the small nuclei), got {:g}", kMaxSynthMpp,
           o.mpp);
  PM_CHECK(o.width >= 1 && o.height >= 1 && o.width <= kMaxSide && o.height <= kMaxSide, ConfigError,
           "the size of a slide must be 1 to {} pixels on each side, got {} x {}", kMaxSide, o.width, o.height);
  const double shorter = static_cast<double>(std::min(o.width, o.height)) * o.mpp;
  PM_CHECK(shorter >= kMinSynthExtent, ConfigError,
           "two pieces of tissue need {0:g} um on each side: {1:.0f} pixels at {2:g} um per pixel, got {3} x {4}",
           kMinSynthExtent, std::ceil(kMinSynthExtent / o.mpp), o.mpp, o.width, o.height);
}

// 0 .. count - 1 in random order.
std::vector<int64_t> random_order(const RngState& draw, int64_t count) {
  std::vector<int64_t> order(static_cast<size_t>(count));
  std::iota(order.begin(), order.end(), 0);
  std::vector<double> keys(order.size());
  for (size_t i = 0; i < keys.size(); ++i) keys[i] = uniform_at(draw, static_cast<int64_t>(i));
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t a, int64_t b) { return keys[static_cast<size_t>(a)] < keys[static_cast<size_t>(b)]; });
  return order;
}

std::string slide_name(const SynthOptions& options, const SynthCase& drawn, int64_t slide) {
  return options.slides_per_case == 1 ? drawn.id : fmt::format("{}-{}", drawn.id, slide + 1);
}

std::string slides_csv(const SynthOptions& options, const std::vector<SynthCase>& cases) {
  std::string text = "case_id,slide_id,path,label,survival_months,censorship\n";
  for (const SynthCase& drawn : cases) {
    for (int64_t slide = 0; slide < options.slides_per_case; ++slide) {
      const std::string name = slide_name(options, drawn, slide);
      text += fmt::format("{0},{1},slides/{1}.tif,{2},{3:.3f},{4}\n", drawn.id, name, drawn.stage, drawn.months,
                          drawn.censored ? 1 : 0);
    }
  }
  return text;
}

std::string split_csv(const std::vector<SynthCase>& cases, int64_t fold) {
  std::vector<std::string> sets[2];
  for (const SynthCase& drawn : cases) sets[drawn.fold == fold ? 1 : 0].push_back(drawn.id);
  std::string text = "train,val\n";
  for (size_t i = 0; i < std::max(sets[0].size(), sets[1].size()); ++i) {
    text += fmt::format("{},{}\n", i < sets[0].size() ? sets[0][i] : "", i < sets[1].size() ? sets[1][i] : "");
  }
  return text;
}

}  // namespace

double synth_score(double upper_contrast, double lower_contrast) {
  return kLocalWeight * 0.5 * (upper_contrast + lower_contrast) +
         kRelationWeight * 0.5 * (upper_contrast - lower_contrast);
}

int64_t synth_stage(double score) {
  return std::count_if(std::begin(kStageCuts), std::end(kStageCuts), [&](double cut) { return cut < score; });
}

std::vector<SynthCase> draw_cases(const SynthOptions& options) {
  check_options(options);
  Rng rng(RngState{options.seed, kCohortStream});
  const std::vector<int64_t> place = random_order(rng.next(), options.cases);
  const RngState contrasts = rng.next(), times = rng.next(), losses = rng.next();
  std::vector<SynthCase> cases(static_cast<size_t>(options.cases));
  for (int64_t i = 0; i < options.cases; ++i) {
    SynthCase& drawn = cases[static_cast<size_t>(i)];
    // Signs and folds go round together: every fold holds out the four pairs of signs alike.
    const int64_t turn = place[static_cast<size_t>(i)];
    drawn.id = fmt::format("case-{:03}", i + 1);
    drawn.fold = turn / 4 % options.folds;
    for (int64_t piece = 0; piece < 2; ++piece) {
      const double size = kLeastContrast + (1.0 - kLeastContrast) * uniform_at(contrasts, 2 * i + piece);
      drawn.contrast[piece] = (turn >> piece & 1) != 0 ? size : -size;
    }
    drawn.score = synth_score(drawn.contrast[0], drawn.contrast[1]);
    drawn.stage = synth_stage(drawn.score);
    const double hazard = std::exp(kLogHazard * drawn.score);
    const auto months_at = [&](double rate, const RngState& draw) {
      return kScale * std::pow(-std::log(uniform_at(draw, i)) / rate, 1.0 / kShape);
    };
    const double event = months_at(hazard, times), loss = months_at(kCensoringRate * hazard, losses);
    drawn.months = std::min(event, loss);
    drawn.censored = loss < event;
  }
  return cases;
}

Image draw_slide(const SynthOptions& options, const SynthCase& drawn, int64_t case_index, int64_t slide_index) {
  const auto index = static_cast<uint64_t>(case_index * options.slides_per_case + slide_index);
  const TissueSlide slide{
      options.width, options.height, options.mpp, {0.5 * (1.0 + drawn.contrast[0]), 0.5 * (1.0 + drawn.contrast[1])}};
  return draw_tissue(slide, Rng(RngState{options.seed, kSlideStream + index * kStreamsPerSlide}));
}

std::vector<SynthCase> write_cohort(const std::string& folder, const SynthOptions& options,
                                    const std::function<void(int64_t)>& written) {
  const std::vector<SynthCase> cases = draw_cases(options);
  std::error_code ignored;  // make_folder says what is wrong with a folder that cannot be made
  PM_CHECK(!std::filesystem::exists(folder, ignored) || std::filesystem::is_empty(folder, ignored), IoError,
           "{}: is not an empty folder; name a new one, so that no older slides mix with the cohort", folder);
  make_folder(folder + "/slides");
  make_folder(folder + "/splits");
  int64_t count = 0;
  for (size_t i = 0; i < cases.size(); ++i) {
    for (int64_t slide = 0; slide < options.slides_per_case; ++slide) {
      write_pyramid_tiff(fmt::format("{}/slides/{}.tif", folder, slide_name(options, cases[i], slide)),
                         draw_slide(options, cases[i], static_cast<int64_t>(i), slide), options.mpp);
      if (written) written(++count);
    }
  }
  for (int64_t fold = 0; fold < options.folds; ++fold) {
    write_file_atomically(fmt::format("{}/splits/splits_{}.csv", folder, fold), split_csv(cases, fold));
  }
  write_file_atomically(folder + "/slides.csv", slides_csv(options, cases));
  return cases;
}

}  // namespace pm::io
