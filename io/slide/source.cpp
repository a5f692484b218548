#include "io/slide/source.h"

#include <openslide.h>
#include <tiffio.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstring>

#include "engine/core/check.h"
#include "io/data/file.h"
#include "io/slide/tiff_messages.h"

namespace pm::io {
namespace {

constexpr int64_t kChannels = 3;

struct OpenSlideCloser {
  void operator()(openslide_t* slide) const { openslide_close(slide); }
};
using OpenSlideHandle = std::unique_ptr<openslide_t, OpenSlideCloser>;

struct TiffCloser {
  void operator()(TIFF* tiff) const { TIFFClose(tiff); }
};
using TiffHandle = std::unique_ptr<TIFF, TiffCloser>;

// ---------------------------------------------------------------- physical resolution
std::optional<double> positive_number(const char* text) {
  if (text == nullptr) return std::nullopt;
  double value = 0.0;
  const auto [end, failure] = std::from_chars(text, text + std::strlen(text), value);
  if (failure != std::errc() || !std::isfinite(value) || value <= 0.0) return std::nullopt;
  return value;
}

// A slide's own statement, unless it is nonsense.
bool is_plausible(double mpp) { return mpp >= 0.01 && mpp <= 1000.0; }

// From the TIFF resolution tags, which image programs also fill with print resolutions that mean nothing here.
std::optional<double> mpp_of_dots(double dots, double micrometres_per_unit) {
  if (!(dots > 0.0)) return std::nullopt;
  const double mpp = micrometres_per_unit / dots;
  if (!(mpp >= 0.05 && mpp <= 100.0)) return std::nullopt;
  constexpr double kPrintResolutions[] = {72, 96, 100, 150, 200, 300, 400, 600, 1200, 2400};
  const double per_inch = 25400.0 / mpp;
  for (const double print : kPrintResolutions) {
    if (std::abs(per_inch - print) < 0.01 * print) return std::nullopt;
  }
  return mpp;
}

std::optional<Resolution> resolution_of_dots(double x, double y, double micrometres_per_unit) {
  const auto mpp_x = mpp_of_dots(x, micrometres_per_unit), mpp_y = mpp_of_dots(y, micrometres_per_unit);
  if (!mpp_x || !mpp_y) return std::nullopt;
  return Resolution{*mpp_x, *mpp_y};
}

// ---------------------------------------------------------------- pixels in memory
class MemoryReader final : public LevelReader {
 public:
  explicit MemoryReader(const Image& image) : image_(image) {}
  bool read(int64_t x, int64_t y, int64_t width, int64_t height, uint8_t* rgb) override {
    for (int64_t j = 0; j < height; ++j) {
      const uint8_t* from = image_.rgb.data() + ((y + j) * image_.width + x) * kChannels;
      std::copy(from, from + width * kChannels, rgb + j * width * kChannels);
    }
    return true;
  }
  const std::string& error() const override { return error_; }

 private:
  const Image& image_;
  std::string error_;
};

// ---------------------------------------------------------------- OpenSlide
OpenSlideHandle open_handle(const std::string& path) {
  const TiffSilence silence;
  return OpenSlideHandle(openslide_open(path.c_str()));
}

class OpenSlideReader final : public LevelReader {
 public:
  OpenSlideReader(const std::string& path, int level) : path_(path), level_(level) {}

  bool read(int64_t x, int64_t y, int64_t width, int64_t height, uint8_t* rgb) override {
    if (!handle_) handle_ = open_handle(path_);
    if (!handle_) return fail("it can no longer be opened");
    const TiffSilence silence;
    const double downsample = openslide_get_level_downsample(handle_.get(), level_);
    argb_.resize(static_cast<size_t>(width * height));
    if (downsample > 0.0) {  // a rectangle is placed in level-0 pixels
      openslide_read_region(handle_.get(), argb_.data(), std::llround(static_cast<double>(x) * downsample),
                            std::llround(static_cast<double>(y) * downsample), level_, width, height);
    }
    if (const char* error = openslide_get_error(handle_.get()); error != nullptr) {
      return fail(error);
    }
    for (const uint32_t pixel : argb_) {  // premultiplied: over white means adding what alpha leaves
      const uint32_t white = 255u - (pixel >> 24);
      *rgb++ = static_cast<uint8_t>(std::min(255u, (pixel >> 16 & 255u) + white));
      *rgb++ = static_cast<uint8_t>(std::min(255u, (pixel >> 8 & 255u) + white));
      *rgb++ = static_cast<uint8_t>(std::min(255u, (pixel & 255u) + white));
    }
    return true;
  }
  const std::string& error() const override { return error_; }

 private:
  // After an error OpenSlide refuses every further call on a handle.
  bool fail(const char* error) {
    error_ = error;
    handle_.reset();
    return false;
  }

  std::string path_, error_;
  int level_;
  OpenSlideHandle handle_;
  std::vector<uint32_t> argb_;
};

class OpenSlideSource final : public SlideSource {
 public:
  explicit OpenSlideSource(const std::string& path) {
    path_ = path;
    handle_ = open_handle(path);
    PM_CHECK(handle_ != nullptr, IoError, "{}: OpenSlide cannot open it", path);
    if (const char* error = openslide_get_error(handle_.get()); error != nullptr) {
      const char* vendor = openslide_detect_vendor(path.c_str());
      throw IoError(fmt::format(
          "{}: a slide ({}) that cannot be opened: {}. It is damaged, or files that belong to it are missing: "
          "copy the slide again with its folder",
          path, vendor != nullptr ? vendor : "unknown scanner", error));
    }
    const char* vendor = property(OPENSLIDE_PROPERTY_NAME_VENDOR);
    format_ = vendor != nullptr ? vendor : "openslide";
    read_levels();
    read_resolution();
    read_properties();
  }

  std::unique_ptr<LevelReader> reader(int level) const override {
    if (level == 0 && !level0_.rgb.empty()) return std::make_unique<MemoryReader>(level0_);
    return std::make_unique<OpenSlideReader>(path_, level);
  }
  // Takes these pixels instead of OpenSlide's for level 0.
  void set_level0(Image image) {
    if (image.width == levels_[0].width && image.height == levels_[0].height) level0_ = std::move(image);
  }

 private:
  const char* property(const std::string& name) const {
    return openslide_get_property_value(handle_.get(), name.c_str());
  }

  int64_t size_property(int level, const char* name) const {
    const auto value = positive_number(property(fmt::format("openslide.level[{}].{}", level, name)));
    return value && *value <= 1e6 ? static_cast<int64_t>(*value) : 0;
  }

  void read_levels() {
    const int count = openslide_get_level_count(handle_.get());
    for (int i = 0; i < count; ++i) {
      SourceLevel level;
      openslide_get_level_dimensions(handle_.get(), i, &level.width, &level.height);
      const double stated = openslide_get_level_downsample(handle_.get(), i);
      PM_CHECK(level.width > 0 && level.height > 0 && stated > 0.0, IoError,
               "{}: level {} has no pixels: the slide is damaged", path_, i);
      level.downsample = i == 0 ? 1.0 : whole_downsample(level, stated);
      level.tile_width = size_property(i, "tile-width");
      level.tile_height = size_property(i, "tile-height");
      levels_.push_back(level);
    }
    PM_CHECK(!levels_.empty(), IoError, "{}: the slide has no levels: it is damaged", path_);
  }

  // OpenSlide divides sizes that writers rounded. The whole factor, a power of two first, is what the writer meant.
  double whole_downsample(const SourceLevel& level, double stated) const {
    const double power = std::exp2(std::round(std::log2(stated)));
    for (const double factor : {power, std::round(stated)}) {
      const double width = static_cast<double>(levels_[0].width) / factor,
                   height = static_cast<double>(levels_[0].height) / factor;
      if (factor >= 1.0 && std::abs(width - static_cast<double>(level.width)) < 1.0 &&
          std::abs(height - static_cast<double>(level.height)) < 1.0) {
        return factor;
      }
    }
    return stated;
  }

  void read_resolution() {
    const auto x = positive_number(property(OPENSLIDE_PROPERTY_NAME_MPP_X));
    const auto y = positive_number(property(OPENSLIDE_PROPERTY_NAME_MPP_Y));
    const bool generic = format_ == "generic-tiff";  // there OpenSlide 4 takes the resolution tags as they are
    if (!generic && x && y && is_plausible(*x) && is_plausible(*y)) resolution_ = Resolution{*x, *y};
    const char* unit = property("tiff.ResolutionUnit");
    const auto dots_x = positive_number(property("tiff.XResolution")),
               dots_y = positive_number(property("tiff.YResolution"));
    if (!generic || unit == nullptr || !dots_x || !dots_y) return;
    if (std::strcmp(unit, "inch") == 0) resolution_ = resolution_of_dots(*dots_x, *dots_y, 25400.0);
    if (std::strcmp(unit, "centimeter") == 0) resolution_ = resolution_of_dots(*dots_x, *dots_y, 10000.0);
  }

  void read_properties() {
    constexpr std::pair<const char*, const char*> kShown[] = {{OPENSLIDE_PROPERTY_NAME_OBJECTIVE_POWER, "objective"},
                                                              {"tiff.Make", "scanner make"},
                                                              {"tiff.Model", "scanner model"},
                                                              {"tiff.Software", "software"},
                                                              {"tiff.DateTime", "scanned"},
                                                              {"aperio.Date", "scanned"},
                                                              {"aperio.ScanScope ID", "scanner"},
                                                              {OPENSLIDE_PROPERTY_NAME_BACKGROUND_COLOR, "background"}};
    for (const auto& [name, title] : kShown) {
      if (const char* value = property(name); value != nullptr && *value != '\0')
        properties_.emplace_back(title, value);
    }
    std::string associated;
    for (const char* const* name = openslide_get_associated_image_names(handle_.get());
         name != nullptr && *name != nullptr; ++name) {
      associated += (associated.empty() ? "" : ", ") + std::string(*name);
    }
    if (!associated.empty()) properties_.emplace_back("other pictures", associated);
  }

  OpenSlideHandle handle_;
  Image level0_;
};

// ---------------------------------------------------------------- pictures
class ImageSource : public SlideSource {
 public:
  std::unique_ptr<LevelReader> reader(int) const override {
    PM_CHECK(!image_.rgb.empty(), Error, "{}: only the header was read", path_);
    return std::make_unique<MemoryReader>(image_);
  }

  Image take() { return std::move(image_); }

 protected:
  void set_size(int64_t width, int64_t height) { levels_ = {{width, height, 1.0, 0, 0}}; }
  Image image_;
};

class PictureSource final : public ImageSource {
 public:
  PictureSource(const std::string& path, bool decode, int64_t max_pixels) {
    path_ = path;
    picture_ = true;
    const ImageSize size = read_image_size(path);
    format_ = size.format;
    set_size(size.width, size.height);
    if (decode) image_ = read_image(path, max_pixels);
  }
};

// A TIFF that OpenSlide does not take, as a rule one without tiles: its first picture, through libtiff's RGBA reader.
class TiffSource final : public ImageSource {
 public:
  TiffSource(const std::string& path, bool decode, int64_t max_pixels) {
    path_ = path;
    format_ = "tiff";
    const TiffSilence silence;
    const TiffHandle tiff(TIFFOpen(path.c_str(), "rm"));
    PM_CHECK(tiff != nullptr, IoError, "{}: a damaged TIFF: its directory cannot be read. Copy the file again", path);
    uint32_t width = 0, height = 0;
    TIFFGetField(tiff.get(), TIFFTAG_IMAGEWIDTH, &width);
    TIFFGetField(tiff.get(), TIFFTAG_IMAGELENGTH, &height);
    PM_CHECK(width > 0 && height > 0, IoError, "{}: a damaged TIFF: {} x {} pixels", path, width, height);
    std::array<char, 1024> reason{};
    PM_CHECK(TIFFRGBAImageOK(tiff.get(), reason.data()) != 0, IoError,
             "{}: a TIFF that cannot be read: {}. 8- or 16-bit grey or RGB is needed", path, reason.data());
    set_size(width, height);
    read_resolution(tiff.get());
    if (decode) read_pixels(tiff.get(), width, height, max_pixels);
  }

 private:
  void read_resolution(TIFF* tiff) {
    float x = 0.0f, y = 0.0f;
    uint16_t unit = RESUNIT_INCH;
    TIFFGetFieldDefaulted(tiff, TIFFTAG_RESOLUTIONUNIT, &unit);
    if (TIFFGetField(tiff, TIFFTAG_XRESOLUTION, &x) == 0 || TIFFGetField(tiff, TIFFTAG_YRESOLUTION, &y) == 0) return;
    if (unit == RESUNIT_INCH) resolution_ = resolution_of_dots(x, y, 25400.0);
    if (unit == RESUNIT_CENTIMETER) resolution_ = resolution_of_dots(x, y, 10000.0);
  }

  void read_pixels(TIFF* tiff, uint32_t width, uint32_t height, int64_t max_pixels) {
    const int64_t count = int64_t{width} * height;
    PM_CHECK(count <= max_pixels, IoError,
             "{}: {} x {} pixels in a TIFF without tiles, at most {} are read; save it as a tiled pyramidal TIFF",
             path_, width, height, max_pixels);
    std::vector<uint32_t> raster(static_cast<size_t>(count));
    PM_CHECK(TIFFReadRGBAImageOriented(tiff, width, height, raster.data(), ORIENTATION_TOPLEFT, 1) != 0, IoError,
             "{}: a damaged TIFF: its pixels cannot be decoded. Copy the file again", path_);
    image_ = {width, height, std::vector<uint8_t>(static_cast<size_t>(count * kChannels))};
    uint8_t* rgb = image_.rgb.data();
    for (const uint32_t pixel : raster) {  // premultiplied, as from OpenSlide
      const uint32_t white = 255u - TIFFGetA(pixel);
      *rgb++ = static_cast<uint8_t>(std::min(255u, TIFFGetR(pixel) + white));
      *rgb++ = static_cast<uint8_t>(std::min(255u, TIFFGetG(pixel) + white));
      *rgb++ = static_cast<uint8_t>(std::min(255u, TIFFGetB(pixel) + white));
    }
  }
};

// A slide that OpenSlide knows. OpenSlide 3.4.1 over libtiff 4.5 misplaces the rows of a level that is smaller than one of
// its tiles; where that is level 0, libtiff reads it whole, if it can.
std::unique_ptr<SlideSource> open_slide(const std::string& path, bool tiff, bool decode, int64_t max_pixels) {
  auto slide = std::make_unique<OpenSlideSource>(path);
  if (!tiff || !decode || !is_smaller_than_a_tile(slide->levels()[0])) return slide;
  try {
    slide->set_level0(TiffSource(path, true, max_pixels).take());
  } catch (const IoError&) {  // compressed in a way that OpenSlide alone reads, or damaged: OpenSlide will tell
  }
  return slide;
}

// ---------------------------------------------------------------- what a file is
bool is_tiff(std::string_view start) {
  using namespace std::string_view_literals;
  return start.starts_with("II*\0"sv) || start.starts_with("MM\0*"sv) || start.starts_with("II+\0"sv) ||
         start.starts_with("MM\0+"sv);
}

bool is_text(std::string_view start) {
  return std::all_of(start.begin(), start.end(), [](char c) {
    const auto byte = static_cast<unsigned char>(c);
    return byte >= 32 || byte == '\n' || byte == '\r' || byte == '\t' || byte == '\f';
  });
}

// Names a file that is no slide, so that the reader of the message knows what he picked.
std::string describe(std::string_view start) {
  using namespace std::string_view_literals;
  constexpr std::pair<std::string_view, const char*> kKnown[] = {
      {"PK\x03\x04"sv, "a ZIP archive: unpack it first"},
      {"\x1f\x8b"sv, "a gzip archive: unpack it first"},
      {"7z\xbc\xaf\x27\x1c"sv, "a 7-Zip archive: unpack it first"},
      {"Rar!"sv, "a RAR archive: unpack it first"},
      {"%PDF"sv, "a PDF document"},
      {"GIF8"sv, "a GIF picture: convert it to PNG"},
      {"BM"sv, "a BMP picture: convert it to PNG"},
      {"RIFF"sv, "a WebP picture or other RIFF file: convert it to PNG"},
      {"\x89HDF"sv, "an HDF5 file (features or tensors, not a slide)"},
      {"\x00\x00\x00\x0cjP"sv, "a JPEG 2000 picture: convert it to TIFF or PNG"},
      {"\xff\x4f\xff\x51"sv, "a JPEG 2000 stream"},
      {"ZISRAWFILE"sv, "a Zeiss CZI file, which OpenSlide cannot read: export it as a pyramidal TIFF"},
  };
  for (const auto& [magic, text] : kKnown) {
    if (start.starts_with(magic)) return text;
  }
  if (start.size() >= 132 && start.substr(128, 4) == "DICM") {
    return fmt::format(
        "a DICOM file, which the installed OpenSlide {} cannot read as a slide: OpenSlide 4.0 or later is needed (and "
        "it "
        "must be a whole-slide DICOM), or convert it to a pyramidal TIFF",
        openslide_get_version());
  }
  if (std::all_of(start.begin(), start.end(), [](char c) { return c == '\0'; })) {
    return "full of zero bytes: the copy or download did not finish";
  }
  if (is_text(start)) return "a text file, not a slide";
  return "of no format that can be read";
}

}  // namespace

bool is_smaller_than_a_tile(const SourceLevel& level) {
  return level.width < level.tile_width || level.height < level.tile_height;
}

std::unique_ptr<SlideSource> open_source(const std::string& path, bool decode, int64_t max_pixels) {
  std::array<char, 512> first{};
  const InputFile file(path);
  PM_CHECK(file.size() > 0, IoError, "{}: is empty (0 bytes): the copy or download did not finish", path);
  const int64_t count = std::min<int64_t>(file.size(), static_cast<int64_t>(first.size()));
  file.read(0, first.data(), count);
  const std::string_view start(first.data(), static_cast<size_t>(count));
  const char* vendor = nullptr;
  {
    const TiffSilence silence;
    vendor = openslide_detect_vendor(path.c_str());
  }
  // Before the pictures: a MIRAX slide's main file is a JPEG.
  if (vendor != nullptr) return open_slide(path, is_tiff(start), decode, max_pixels);
  if (!image_format(start).empty()) return std::make_unique<PictureSource>(path, decode, max_pixels);
  if (is_tiff(start)) return std::make_unique<TiffSource>(path, decode, max_pixels);
  throw IoError(fmt::format(
      "{}: is {}. Slides that OpenSlide reads (.svs, .ndpi, .mrxs, .scn, .tiff, ...), TIFF, PNG and JPEG are taken",
      path, describe(start)));
}

}  // namespace pm::io
