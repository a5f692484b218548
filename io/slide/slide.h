// Reads slides and pictures at a physical resolution, as one RGB picture.
//
// mpp = micrometres per pixel. The coarsest stored level that is at least as fine as asked for (1 % slack) is read tile by
// tile, in parallel, and averaged over areas to exactly the resolution asked for; a slide coarser than that is enlarged
// bilinearly. Memory: the result, a strip of it in floating point, and a few tiles per thread; never a whole level.
#pragma once
#include <cstdint>
#include <optional>
#include <stop_token>
#include <string>
#include <utility>
#include <vector>

#include "engine/core/error.h"
#include "io/slide/image.h"

namespace pm::io {

struct SlideOptions {
  double mpp = 4.0;                      // wanted, micrometres per pixel: 4 is 2.5x, 0.5 is 20x, 0.25 is 40x
  std::optional<double> slide_mpp;       // of level 0; overrides what the file says
  int64_t max_pixels = kMaxImagePixels;  // of the result
  std::stop_token stop;                  // gives up between tiles: read_slide throws Cancelled
};

// Reading was given up because it was asked to.
class Cancelled : public Error {
 public:
  using Error::Error;
};

struct SlideImage {
  Image image;
  double mpp = 0.0;        // of `image`; 0 when unknown
  std::string mpp_source;  // "slide", "given", or "none": a plain picture, read as it is
  int64_t tiles = 0;       // read
  int64_t bad_tiles = 0;   // of them, not decodable and filled white
  int level = 0;
  double level_downsample = 1.0;
  int64_t level0_width = 0, level0_height = 0;
  double scale_x = 1.0, scale_y = 1.0;  // level-0 pixels per pixel of `image`
  std::string format;                   // "aperio", "hamamatsu", "generic-tiff", ..., "tiff", "png", "jpeg"
};

// What read_slide would give.
struct SlidePlan {
  std::string format;
  int64_t width = 0, height = 0;  // of the picture; read_slide may differ by one pixel
  double slide_mpp = 0.0;         // of level 0, mean of both axes; 0: unknown, the picture is read as it is
  std::string mpp_source;
  int64_t read_bytes = 0;  // pixels in memory while reading, the picture among them, about
};

struct SlideLevel {
  int64_t width = 0, height = 0;
  double downsample = 1.0;
};

struct SlideInfo {
  std::string format;
  int64_t width = 0, height = 0;
  std::optional<double> mpp;  // of level 0, mean of both axes
  std::string mpp_source;     // "slide" or "none"
  std::vector<SlideLevel> levels;
  std::vector<std::pair<std::string, std::string>> properties;  // title and value, worth showing
};

// Throws IoError naming the file, what it is and what would be right: missing, empty, no slide, damaged, no physical resolution
// in it and none given (a plain PNG or JPEG is then read as it is), more than 5 % of its tiles damaged, more than max_pixels.
// Throws ConfigError when mpp or slide_mpp is not a positive number.
SlideImage read_slide(const std::string& path, const SlideOptions& options = {});
// From the header alone. Throws what read_slide throws for what a header shows.
SlidePlan plan_slide(const std::string& path, const SlideOptions& options = {});
// Level 0 pixel by pixel; mpp 0, mpp_source "none".
SlideImage read_image_as_is(const std::string& path, int64_t max_pixels = kMaxImagePixels);
// Header and properties, no pixels. Throws IoError as read_slide.
SlideInfo inspect_slide(const std::string& path);
// Whether OpenSlide knows the format. False for missing files, plain pictures and everything else.
bool is_whole_slide(const std::string& path);

}  // namespace pm::io
