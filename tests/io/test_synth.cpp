// Made-up cohorts: what is written agrees with the model that the header writes down.
#include <omp.h>

#include <cmath>
#include <filesystem>
#include <map>
#include <set>

#include "io/data/cohort.h"
#include "io/data/file.h"
#include "io/slide/slide.h"
#include "io/synth/synth_cohort.h"
#include "tests/io/pictures.h"
#include "tests/support/test.h"

namespace pm::test {
namespace fs = std::filesystem;
namespace {

io::SynthOptions small() {
  io::SynthOptions options;
  options.cases = 5;
  options.slides_per_case = 2;
  options.width = 600;
  options.height = 640;
  options.folds = 2;
  options.seed = 7;
  return options;
}

std::map<std::string, std::string> files_in(const std::string& folder) {
  std::map<std::string, std::string> files;
  for (const auto& entry : fs::recursive_directory_iterator(folder)) {
    if (entry.is_regular_file())
      files[fs::relative(entry.path(), folder).string()] = io::read_file(entry.path().string());
  }
  return files;
}

std::string rejection(const std::function<void(io::SynthOptions&)>& change) {
  io::SynthOptions options;
  change(options);
  try {
    io::draw_cases(options);
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "";
}

bool is_glass(const uint8_t* pixel) { return pixel[0] > 242 && pixel[1] > 241; }

struct PieceStatistics {
  double mean[2][3] = {};    // per piece and colour
  double deviation[2] = {};  // of green
  int64_t pixels[2] = {};
};

// Of the upper and the lower half of the picture, glass left out: each holds one piece.
PieceStatistics statistics(const io::Image& image) {
  PieceStatistics result;
  double squares[2] = {};
  for (int64_t y = 0; y < image.height; ++y) {
    for (int64_t x = 0; x < image.width; ++x) {
      const uint8_t* pixel = image.rgb.data() + 3 * (y * image.width + x);
      if (is_glass(pixel)) continue;
      const int piece = 2 * y < image.height ? 0 : 1;
      ++result.pixels[piece];
      for (int c = 0; c < 3; ++c) result.mean[piece][c] += pixel[c];
      squares[piece] += static_cast<double>(pixel[1]) * pixel[1];
    }
  }
  for (int piece = 0; piece < 2; ++piece) {
    const auto n = static_cast<double>(result.pixels[piece]);
    for (double& mean : result.mean[piece]) mean /= n;
    result.deviation[piece] = std::sqrt(squares[piece] / n - result.mean[piece][1] * result.mean[piece][1]);
  }
  return result;
}

io::SynthCase with_contrasts(double first, double second) {
  io::SynthCase drawn;
  drawn.contrast[0] = first;
  drawn.contrast[1] = second;
  return drawn;
}

}  // namespace

TEST_CASE("a made-up cohort is the same for a seed, on any number of threads", "[cpu]") {
  const TempDir dir;
  const int threads = omp_get_max_threads();
  omp_set_num_threads(1);
  io::write_cohort(dir.path() + "/a", small());
  omp_set_num_threads(3);
  io::write_cohort(dir.path() + "/b", small());
  omp_set_num_threads(threads);
  io::SynthOptions other = small();
  other.seed = 8;
  io::write_cohort(dir.path() + "/c", other);
  const auto a = files_in(dir.path() + "/a"), b = files_in(dir.path() + "/b"), c = files_in(dir.path() + "/c");
  CHECK(a.size() == 10 + 2 + 1);
  CHECK(a == b);
  CHECK(a.at("slides.csv") != c.at("slides.csv"));
  CHECK(a.at("slides/case-001-1.tif") != a.at("slides/case-001-2.tif"));
  CHECK(a.at("slides/case-001-1.tif") != c.at("slides/case-001-1.tif"));
}

TEST_CASE("a made-up cohort loads as any cohort: counts, labels, splits, resolution", "[cpu]") {
  const TempDir dir;
  const std::string folder = dir.path() + "/cohort";
  int64_t told = 0;
  const std::vector<io::SynthCase> cases =
      io::write_cohort(folder, small(), [&](int64_t done) { CHECK(done == ++told); });
  CHECK(told == 10);
  const io::Cohort cohort = io::read_cohort(folder + "/slides.csv", {});
  REQUIRE(cohort.cases.size() == 5);
  REQUIRE(cohort.slides().size() == 10);
  for (size_t i = 0; i < 10; ++i) {
    const io::SlideRow& row = cohort.slides()[i];
    const io::SynthCase& drawn = cases[i / 2];
    CHECK(row.case_id == drawn.id);
    CHECK(row.label == io::synth_stage(io::synth_score(drawn.contrast[0], drawn.contrast[1])));
    CHECK(row.survival_months == Approx(drawn.months).margin(5e-4));
    CHECK(row.censored == drawn.censored);
    const io::SlideInfo info = io::inspect_slide(row.path);
    CHECK(info.width == 600);
    CHECK(info.height == 640);
    REQUIRE(info.mpp.has_value());
    CHECK(*info.mpp == Approx(1.0));
  }
  const std::vector<io::Fold> folds = io::read_splits(folder + "/splits", cohort);
  REQUIRE(folds.size() == 2);
  std::multiset<std::string> held_out;
  for (const io::Fold& fold : folds) {
    std::set<std::string> train, val;
    for (const int64_t slide : fold.train) train.insert(cohort.slides()[static_cast<size_t>(slide)].case_id);
    for (const int64_t slide : fold.val) val.insert(cohort.slides()[static_cast<size_t>(slide)].case_id);
    CHECK(train.size() + val.size() == 5);  // disjoint, and all are there
    held_out.insert(val.begin(), val.end());
  }
  CHECK(held_out.size() == 5);
  CHECK(std::set<std::string>(held_out.begin(), held_out.end()).size() == 5);
}

TEST_CASE("the cases of a made-up cohort follow its model", "[cpu]") {
  io::SynthOptions options;
  options.cases = 8000;
  const std::vector<io::SynthCase> cases = io::draw_cases(options);
  int64_t signs[4] = {}, stages[4] = {}, folds[4] = {}, censored = 0;
  for (const io::SynthCase& drawn : cases) {
    for (const double contrast : drawn.contrast) {
      REQUIRE(std::abs(contrast) >= io::kLeastContrast);
      REQUIRE(std::abs(contrast) <= 1.0);
    }
    ++signs[(drawn.contrast[0] > 0.0 ? 1 : 0) + (drawn.contrast[1] > 0.0 ? 2 : 0)];
    ++stages[drawn.stage];
    ++folds[drawn.fold];
    censored += drawn.censored ? 1 : 0;
  }
  // Binomial deviations: 0.0048 of a quarter, 0.0051 of 30 %. Bounds at five of them.
  for (int i = 0; i < 4; ++i) {
    CHECK(signs[i] == 2000);
    CHECK(folds[i] == 2000);
    CHECK(static_cast<double>(stages[i]) / 8000.0 == Approx(0.25).margin(0.025));
  }
  CHECK(static_cast<double>(censored) / 8000.0 == Approx(0.3).margin(0.026));
}

TEST_CASE("the two kinds of made-up tissue differ in texture and not in colour", "[cpu]") {
  io::SynthOptions options;  // the default size; drawn whole, then averaged down as a thumbnail would be
  for (const int64_t index : {0, 1, 2}) {
    const io::Image image = io::draw_slide(options, with_contrasts(-1.0, 1.0), index, 0);
    const PieceStatistics full = statistics(image);
    CAPTURE(index);
    for (int c = 0; c < 3; ++c) CHECK(full.mean[0][c] == Approx(full.mean[1][c]).margin(6.0));
    // At 12 um per pixel the fine nuclei blur, the coarse ones stay.
    io::Image coarse{image.width / 12, image.height / 12, {}};
    for (int64_t y = 0; y < coarse.height; ++y) {
      for (int64_t x = 0; x < coarse.width; ++x) {
        for (int64_t c = 0; c < 3; ++c) {
          int64_t sum = 0;
          for (int64_t k = 0; k < 144; ++k)
            sum += image.rgb[static_cast<size_t>(3 * ((12 * y + k / 12) * image.width + 12 * x + k % 12) + c)];
          coarse.rgb.push_back(static_cast<uint8_t>(sum / 144));
        }
      }
    }
    const PieceStatistics seen = statistics(coarse);
    CHECK(seen.deviation[1] > 1.5 * seen.deviation[0]);
  }
}

TEST_CASE("options that make no cohort are refused, and so is a folder in use", "[cpu]") {
  CHECK_THAT(rejection([](auto& o) { o.cases = 3; }), ContainsSubstring("at least one case per fold"));
  CHECK_THAT(rejection([](auto& o) { o.folds = 1; }), ContainsSubstring("folds"));
  CHECK_THAT(rejection([](auto& o) { o.slides_per_case = 0; }), ContainsSubstring("slides per case"));
  CHECK_THAT(rejection([](auto& o) { o.mpp = 2.5; }), ContainsSubstring("at most 2"));
  CHECK_THAT(rejection([](auto& o) { o.mpp = std::nan(""); }), ContainsSubstring("mpp"));
  CHECK_THAT(rejection([](auto& o) { o.width = 500; }), ContainsSubstring("600 pixels"));
  CHECK_THAT(rejection([](auto& o) { o.width = 1'000'000; }), ContainsSubstring("size"));
  const TempDir dir;
  write_bytes(dir.path() + "/notes.txt", "mine");
  CHECK_THAT(error_message([&] { io::write_cohort(dir.path(), small()); }), ContainsSubstring("not an empty folder"));
  CHECK(files_in(dir.path()).size() == 1);
}

}  // namespace pm::test
