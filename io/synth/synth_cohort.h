// A made-up cohort: slides with tissue, and outcomes that depend on both local texture and far-apart structure.
//
// Every slide holds two pieces of tissue, one far above the other on white glass. Two kinds fill them in patches of about 0.1 mm:
// fine (small nuclei, close together) and coarse (large nuclei, further apart). Both kinds are the same picture at another
// scale: the same colours in the same shares of the area, so a thumbnail, in which nuclei blur into the mean, shows neither.
//
//   contrast of a piece    s   = (coarse share of its area) - (fine share), drawn as +-(kLeastContrast .. 1), signs balanced
//   local texture          m   = (s_upper + s_lower) / 2    what averaging over patches can see
//   far-apart structure    r   = (s_upper - s_lower) / 2    which of the two pieces is the coarser one, independent of m
//   score                  q   = kLocalWeight * m + kRelationWeight * r
//   stage                  number of kStageCuts below q    the quarters of the distribution of q
//   event time             Weibull: P(T > t) = exp(-exp(kLogHazard * q) * (t / kScale)^kShape), t in months
//   loss to follow-up      the same with 3/7 of the hazard: 30 % of the cases are censored, at every score
//
// The slides of one case share both contrasts; shapes, places, patches and nuclei differ.
//
// Harrell's concordance that can be reached, in expectation (tests/metrics/test_synth_ceilings.cpp holds them to it):
//   q itself                                                 0.91
//   r alone                                                  0.85
//   s_upper: patches of the upper piece alone                0.79
//   any function of m: patches averaged over the slide       0.58
//   a thumbnail                                              0.50
//
// Everything is drawn from Philox streams by (seed, case, slide): the same options give the same files, on any number of threads.
#pragma once
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "io/slide/image.h"

namespace pm::io {

struct SynthOptions {
  int64_t cases = 144;
  int64_t slides_per_case = 1;
  int64_t width = 768, height = 1024;  // pixels of a slide
  double mpp = 1.0;                    // micrometres per pixel; at most kMaxSynthMpp
  int64_t folds = 4;
  uint64_t seed = 0;
};

constexpr double kMaxSynthMpp = 2.0;       // coarser pixels lose the fine nuclei
constexpr double kMinSynthExtent = 600.0;  // micrometres, width and height: two pieces with room for their patches

constexpr double kLeastContrast = 0.7;
constexpr double kLocalWeight = 0.6, kRelationWeight = 2.0;
constexpr double kStageCuts[3] = {-1.1, 0.0, 1.1};
constexpr double kLogHazard = 5.0;
constexpr double kShape = 6.0, kScale = 40.0;  // of the Weibull distribution at score 0; months

struct SynthCase {
  std::string id;
  double contrast[2] = {};  // s_upper, s_lower
  double score = 0.0;
  int64_t stage = 0;  // 0 to 3
  double months = 0.0;
  bool censored = false;
  int64_t fold = 0;  // that holds it out
};

double synth_score(double upper_contrast, double lower_contrast);
int64_t synth_stage(double score);

// The cases of a cohort, without their slides. Throws ConfigError for options that make no cohort.
std::vector<SynthCase> draw_cases(const SynthOptions& options);
// A slide of a case: (height, width, 3).
Image draw_slide(const SynthOptions& options, const SynthCase& drawn, int64_t case_index, int64_t slide_index);

// Writes DIR/slides/*.tif (tiled pyramids), DIR/slides.csv and DIR/splits/splits_k.csv, and returns the cases. `written` is told
// after each slide how many there are. Throws ConfigError, IoError or StorageError.
std::vector<SynthCase> write_cohort(const std::string& folder, const SynthOptions& options,
                                    const std::function<void(int64_t)>& written = {});

}  // namespace pm::io
