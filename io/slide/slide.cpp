#include "io/slide/slide.h"

#include <omp.h>
#include <openslide.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <exception>

#include "engine/core/check.h"
#include "io/slide/resample.h"
#include "io/slide/source.h"
#include "io/slide/tiff_messages.h"

namespace pm::io {
namespace {

constexpr int64_t kChannels = 3;
constexpr double kLevelSlack = 1.01;  // a level this much coarser than wanted still counts as fine enough
constexpr double kSameAxes = 1.01;    // pixels this close to square are square
constexpr double kMaxBadShare = 0.05;
constexpr int64_t kPieceSide = 1024;       // pixels read at once, about
constexpr int64_t kMaxTileSide = 4096;     // larger stored tiles are read in parts
constexpr int64_t kPieceBytes = 16 << 20;  // of one thread: a piece, its sums, what the decoder holds; about
constexpr int64_t kMinTileSide = 64;       // smaller stored tiles are counted and retried in groups

// One level cut into tiles (the unit of damage, whole stored tiles) and pieces (what is read at once, whole tiles).
struct Tiling {
  int64_t width = 0, height = 0;
  int64_t tile_width = 0, tile_height = 0;
  int64_t piece_width = 0, piece_height = 0;

  static int64_t count(int64_t length, int64_t step) { return (length + step - 1) / step; }
  int64_t piece_columns() const { return count(width, piece_width); }
  int64_t pieces() const { return piece_columns() * count(height, piece_height); }
  int64_t tiles() const { return count(width, tile_width) * count(height, tile_height); }
};

int64_t tile_side(int64_t stored) {
  if (stored <= 0 || stored > kMaxTileSide) return kPieceSide;
  return stored * std::max<int64_t>(1, kMinTileSide / stored);
}

Tiling make_tiling(const SourceLevel& level) {
  Tiling tiling{level.width, level.height, tile_side(level.tile_width), tile_side(level.tile_height), 0, 0};
  tiling.piece_width = tiling.tile_width * std::max<int64_t>(1, kPieceSide / tiling.tile_width);
  const int64_t lines = kPieceSide * kPieceSide / tiling.piece_width;  // wide strips are read in few lines
  tiling.piece_height = tiling.tile_height * std::max<int64_t>(1, lines / tiling.tile_height);
  return tiling;
}

struct Rectangle {
  int64_t x, y, width, height;
};

Rectangle piece_at(const Tiling& tiling, int64_t index) {
  const int64_t x = index % tiling.piece_columns() * tiling.piece_width,
                y = index / tiling.piece_columns() * tiling.piece_height;
  return {x, y, std::min(tiling.piece_width, tiling.width - x), std::min(tiling.piece_height, tiling.height - y)};
}

// Reads a piece; when that fails, tile by tile, so that a damaged tile costs no other. Returns the number of bad tiles.
int64_t read_piece(LevelReader& reader, const Tiling& tiling, const Rectangle& piece, std::vector<uint8_t>& rgb,
                   std::string& error) {
  rgb.resize(static_cast<size_t>(piece.width * piece.height * kChannels));
  if (reader.read(piece.x, piece.y, piece.width, piece.height, rgb.data())) return 0;
  std::fill(rgb.begin(), rgb.end(), uint8_t{255});
  int64_t bad = 0;
  std::vector<uint8_t> tile;
  for (int64_t y = 0; y < piece.height; y += tiling.tile_height) {
    for (int64_t x = 0; x < piece.width; x += tiling.tile_width) {
      const int64_t width = std::min(tiling.tile_width, piece.width - x),
                    height = std::min(tiling.tile_height, piece.height - y);
      tile.resize(static_cast<size_t>(width * height * kChannels));
      if (!reader.read(piece.x + x, piece.y + y, width, height, tile.data())) {
        error = reader.error();
        ++bad;
        continue;
      }
      for (int64_t j = 0; j < height; ++j) {
        std::copy_n(tile.data() + j * width * kChannels, width * kChannels,
                    rgb.data() + ((y + j) * piece.width + x) * kChannels);
      }
    }
  }
  return bad;
}

// What the threads share: the first exception, the damage so far. Written inside critical sections.
struct Progress {
  std::exception_ptr failure;
  std::atomic<bool> stop{false};
  int64_t bad_tiles = 0;
  std::string error;
};

// Averages one level down by the scales (each at least 1). Pieces are read by all threads and added in order.
Image read_level(const SlideSource& source, int level, double scale_x, double scale_y, const std::stop_token& stop,
                 SlideImage& result) {
  const Tiling tiling = make_tiling(source.levels()[static_cast<size_t>(level)]);
  AreaAverage average(tiling.width, tiling.height, scale_x, scale_y);
  result.tiles = tiling.tiles();
  const double allowed = kMaxBadShare * static_cast<double>(result.tiles);
  Progress progress;
  const int64_t pieces = tiling.pieces();
  const int threads = static_cast<int>(std::min<int64_t>(omp_get_max_threads(), pieces));
#pragma omp parallel num_threads(threads)
  {
    std::unique_ptr<LevelReader> reader;
    std::vector<uint8_t> rgb;
    const auto guarded = [&](auto&& work) {  // no exception may leave the parallel region
      if (progress.stop) return;
      try {
        work();
      } catch (...) {
#pragma omp critical(pm_read_level)
        if (!progress.failure) progress.failure = std::current_exception();
        progress.stop = true;
      }
    };
#pragma omp for ordered schedule(dynamic, 1)
    for (int64_t i = 0; i < pieces; ++i) {
      AreaAverage::Piece sums;
      int64_t bad = 0;
      std::string error;
      guarded([&] {
        if (stop.stop_requested()) throw Cancelled(source.path() + ": reading was stopped");
        if (!reader) reader = source.reader(level);
        const Rectangle piece = piece_at(tiling, i);
        bad = read_piece(*reader, tiling, piece, rgb, error);
        if (average.is_copy()) {
          average.place(rgb.data(), piece.x, piece.y, piece.width, piece.height);
        } else {
          sums = average.average(rgb.data(), piece.x, piece.y, piece.width, piece.height);
        }
      });
#pragma omp ordered
      guarded([&] {
        if (!average.is_copy()) average.add(sums);
        progress.bad_tiles += bad;
        if (progress.error.empty()) progress.error = error;
        if (static_cast<double>(progress.bad_tiles) > allowed) progress.stop = true;
      });
    }
  }
  if (progress.failure) std::rethrow_exception(progress.failure);
  PM_CHECK(static_cast<double>(progress.bad_tiles) <= allowed, IoError,
           "{}: the slide is damaged: at least {} of {} tiles of level {} cannot be decoded ({}); at most {:g} % may "
           "be. Copy the file again",
           source.path(), progress.bad_tiles, result.tiles, level, progress.error, 100.0 * kMaxBadShare);
  result.bad_tiles = progress.bad_tiles;
  return average.take();
}

void check_result_size(const SlideSource& source, double width, double height, int64_t max_pixels, const char* advice) {
  PM_CHECK(width * height <= static_cast<double>(max_pixels), IoError,
           "{}: the picture would have {:.0f} x {:.0f} pixels, at most {} "
           "are read; {}",
           source.path(), std::round(width), std::round(height), max_pixels, advice);
}

SlideImage describe(const SlideSource& source) {
  SlideImage result;
  result.format = source.format();
  result.mpp_source = "none";
  result.level0_width = source.levels()[0].width;
  result.level0_height = source.levels()[0].height;
  return result;
}

SlideImage read_as_is(const SlideSource& source, int64_t max_pixels, const std::stop_token& stop) {
  SlideImage result = describe(source);
  check_result_size(source, static_cast<double>(result.level0_width), static_cast<double>(result.level0_height),
                    max_pixels, "use a smaller picture");
  result.image = read_level(source, 0, 1.0, 1.0, stop, result);
  return result;
}

// Level-0 resolution, square where it nearly is; empty for a plain picture without a given one.
std::optional<Resolution> resolution_of(const SlideSource& source, const SlideOptions& options) {
  if (options.slide_mpp) return Resolution{*options.slide_mpp, *options.slide_mpp};
  if (const auto& own = source.resolution()) {
    const double ratio = std::max(own->x, own->y) / std::min(own->x, own->y);
    const double mean = 0.5 * (own->x + own->y);
    return ratio <= kSameAxes ? Resolution{mean, mean} : *own;
  }
  PM_CHECK(source.is_picture(), IoError,
           "{}: no physical resolution (mpp) in the file: give it with --slide-mpp (e.g. 0.25 for 40x, 0.5 for 20x)",
           source.path());
  return std::nullopt;
}

// The coarsest level that is fine enough on both axes; the finest when none is.
int choose_level(const SlideSource& source, const Resolution& resolution, double mpp) {
  int chosen = 0;
  for (size_t i = 1; i < source.levels().size(); ++i) {
    if (is_smaller_than_a_tile(source.levels()[i])) continue;
    const double downsample = source.levels()[i].downsample;
    const bool fine_enough = std::max(resolution.x, resolution.y) * downsample <= mpp * kLevelSlack;
    if (fine_enough && downsample > source.levels()[static_cast<size_t>(chosen)].downsample)
      chosen = static_cast<int>(i);
  }
  return chosen;
}

// The level to read and its pixels per pixel of the result.
struct Sampling {
  int level = 0;
  double scale_x = 1.0, scale_y = 1.0;
  bool enlarges() const { return scale_x < 1.0 || scale_y < 1.0; }
};

Sampling choose_sampling(const SlideSource& source, const Resolution& resolution, const SlideOptions& options) {
  Sampling sampling;
  sampling.level = choose_level(source, resolution, options.mpp);
  const SourceLevel& level = source.levels()[static_cast<size_t>(sampling.level)];
  sampling.scale_x = options.mpp / resolution.x / level.downsample;
  sampling.scale_y = options.mpp / resolution.y / level.downsample;
  check_result_size(source, static_cast<double>(level.width) / sampling.scale_x,
                    static_cast<double>(level.height) / sampling.scale_y, options.max_pixels, "use a larger --mpp");
  return sampling;
}

void check_options(const SlideOptions& options) {
  PM_CHECK(std::isfinite(options.mpp) && options.mpp > 0.0, ConfigError, "mpp must be a positive number, got {}",
           options.mpp);
  PM_CHECK(!options.slide_mpp || (std::isfinite(*options.slide_mpp) && *options.slide_mpp > 0.0), ConfigError,
           "the slide's mpp must be a positive number, got {}", *options.slide_mpp);
}

}  // namespace

SlideImage read_slide(const std::string& path, const SlideOptions& options) {
  check_options(options);
  const auto source = open_source(path, true, options.max_pixels);
  const auto resolution = resolution_of(*source, options);
  if (!resolution) return read_as_is(*source, options.max_pixels, options.stop);

  SlideImage result = describe(*source);
  const Sampling sampling = choose_sampling(*source, *resolution, options);
  result.level = sampling.level;
  result.level_downsample = source->levels()[static_cast<size_t>(sampling.level)].downsample;
  result.mpp = options.mpp;
  result.mpp_source = options.slide_mpp ? "given" : "slide";
  result.scale_x = options.mpp / resolution->x;
  result.scale_y = options.mpp / resolution->y;
  result.image = read_level(*source, result.level, std::max(1.0, sampling.scale_x), std::max(1.0, sampling.scale_y),
                            options.stop, result);
  if (sampling.enlarges())
    result.image = enlarge(result.image, std::min(1.0, sampling.scale_x), std::min(1.0, sampling.scale_y));
  return result;
}

SlidePlan plan_slide(const std::string& path, const SlideOptions& options) {
  check_options(options);
  const auto source = open_source(path, false, options.max_pixels);
  const auto resolution = resolution_of(*source, options);
  SlidePlan plan;
  plan.format = source->format();
  plan.mpp_source = !resolution ? "none" : options.slide_mpp ? "given" : "slide";
  plan.width = source->levels()[0].width;
  plan.height = source->levels()[0].height;
  int64_t level_pixels = plan.width * plan.height, strip_values = 0;
  bool whole_level = source->is_picture();  // decoded in one piece
  if (resolution) {
    const Sampling sampling = choose_sampling(*source, *resolution, options);
    const SourceLevel& level = source->levels()[static_cast<size_t>(sampling.level)];
    plan.slide_mpp = 0.5 * (resolution->x + resolution->y);
    plan.width = AreaAverage::output_size(level.width, sampling.scale_x);
    plan.height = AreaAverage::output_size(level.height, sampling.scale_y);
    level_pixels = level.width * level.height;
    whole_level = whole_level || sampling.enlarges();
    const double lines = static_cast<double>(make_tiling(level).piece_height) / std::max(1.0, sampling.scale_y) + 1.0;
    if (std::max(sampling.scale_x, sampling.scale_y) > 1.0)
      strip_values = kChannels * plan.width * std::min(plan.height, static_cast<int64_t>(lines));
  } else {
    check_result_size(*source, static_cast<double>(plan.width), static_cast<double>(plan.height), options.max_pixels,
                      "use a smaller picture");
  }
  plan.read_bytes = kChannels * (plan.width * plan.height + (whole_level ? level_pixels : 0)) +
                    strip_values * static_cast<int64_t>(sizeof(double)) + kPieceBytes * omp_get_max_threads();
  return plan;
}

SlideImage read_image_as_is(const std::string& path, int64_t max_pixels) {
  return read_as_is(*open_source(path, true, max_pixels), max_pixels, {});
}

SlideInfo inspect_slide(const std::string& path) {
  const auto source = open_source(path, false, kMaxImagePixels);
  SlideInfo info;
  info.format = source->format();
  info.width = source->levels()[0].width;
  info.height = source->levels()[0].height;
  info.mpp_source = source->resolution() ? "slide" : "none";
  if (const auto& own = source->resolution()) info.mpp = 0.5 * (own->x + own->y);
  for (const SourceLevel& level : source->levels())
    info.levels.push_back({level.width, level.height, level.downsample});
  info.properties = source->properties();
  return info;
}

bool is_whole_slide(const std::string& path) {
  const TiffSilence silence;
  return openslide_detect_vendor(path.c_str()) != nullptr;
}

}  // namespace pm::io
