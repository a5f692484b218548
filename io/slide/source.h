// One opened slide or picture: its levels, physical resolution and pixels. The part of the reader that knows file formats.
#pragma once
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "io/slide/image.h"

namespace pm::io {

struct SourceLevel {
  int64_t width = 0, height = 0;
  double downsample = 1.0;                  // level-0 pixels per pixel; a whole number where the sizes allow it
  int64_t tile_width = 0, tile_height = 0;  // as stored; 0 when unknown
};

// Such levels are not read as long as there is another: OpenSlide 3.4.1 over libtiff 4.5 misplaces their rows.
bool is_smaller_than_a_tile(const SourceLevel& level);

// Micrometres per level-0 pixel.
struct Resolution {
  double x = 0.0, y = 0.0;
};

// Reads rectangles of one level. One object serves one thread.
class LevelReader {
 public:
  virtual ~LevelReader() = default;
  // rgb: (height, width, 3), filled with the rectangle at (x, y), transparency over white. False when it cannot be decoded;
  // error() says why, and the next read starts afresh.
  virtual bool read(int64_t x, int64_t y, int64_t width, int64_t height, uint8_t* rgb) = 0;
  virtual const std::string& error() const = 0;
};

class SlideSource {
 public:
  virtual ~SlideSource() = default;
  const std::string& path() const { return path_; }
  const std::string& format() const { return format_; }  // OpenSlide's vendor, "tiff", "png" or "jpeg"
  bool is_picture() const { return picture_; }           // PNG or JPEG: no physical size of its own
  const std::vector<SourceLevel>& levels() const { return levels_; }
  const std::optional<Resolution>& resolution() const { return resolution_; }
  const std::vector<std::pair<std::string, std::string>>& properties() const { return properties_; }
  virtual std::unique_ptr<LevelReader> reader(int level) const = 0;

 protected:
  std::string path_, format_;
  bool picture_ = false;
  std::vector<SourceLevel> levels_;
  std::optional<Resolution> resolution_;
  std::vector<std::pair<std::string, std::string>> properties_;
};

// Opens whatever OpenSlide reads, other TIFFs, PNG and JPEG. `decode` false: PNG, JPEG and TIFF are read up to their header
// only and have no reader. Throws IoError with the file, what it is and what would be right.
std::unique_ptr<SlideSource> open_source(const std::string& path, bool decode, int64_t max_pixels);

}  // namespace pm::io
