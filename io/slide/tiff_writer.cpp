#include "io/slide/tiff_writer.h"

#include <tiffio.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <memory>

#include "engine/core/check.h"
#include "io/data/atomic_file.h"
#include "io/slide/tiff_messages.h"

namespace pm::io {
namespace {

constexpr int64_t kChannels = 3;
constexpr int64_t kBigTiffBytes = int64_t{3} << 30;  // offsets of a classic TIFF end at 4 GiB

struct TiffCloser {
  void operator()(TIFF* tiff) const { TIFFClose(tiff); }
};
using TiffHandle = std::unique_ptr<TIFF, TiffCloser>;

Image half_size(const Image& image) {
  Image half{std::max<int64_t>(1, image.width / 2), std::max<int64_t>(1, image.height / 2), {}};
  half.rgb.resize(static_cast<size_t>(half.width * half.height * kChannels));
#pragma omp parallel for
  for (int64_t y = 0; y < half.height; ++y) {
    const uint8_t* upper = image.rgb.data() + 2 * y * image.width * kChannels;
    const uint8_t* lower = image.rgb.data() + std::min(2 * y + 1, image.height - 1) * image.width * kChannels;
    uint8_t* to = half.rgb.data() + y * half.width * kChannels;
    for (int64_t x = 0; x < half.width; ++x) {
      const int64_t left = 2 * x * kChannels, right = std::min(2 * x + 1, image.width - 1) * kChannels;
      for (int64_t c = 0; c < kChannels; ++c) {
        *to++ = static_cast<uint8_t>((upper[left + c] + upper[right + c] + lower[left + c] + lower[right + c] + 2) / 4);
      }
    }
  }
  return half;
}

void set_tags(TIFF* tiff, const Image& image, bool reduced, double mpp, const std::string& description,
              const TiffOptions& options) {
  TIFFSetField(tiff, TIFFTAG_SUBFILETYPE, reduced ? FILETYPE_REDUCEDIMAGE : 0);
  TIFFSetField(tiff, TIFFTAG_IMAGEWIDTH, static_cast<uint32_t>(image.width));
  TIFFSetField(tiff, TIFFTAG_IMAGELENGTH, static_cast<uint32_t>(image.height));
  TIFFSetField(tiff, TIFFTAG_TILEWIDTH, static_cast<uint32_t>(options.tile));
  TIFFSetField(tiff, TIFFTAG_TILELENGTH, static_cast<uint32_t>(options.tile));
  TIFFSetField(tiff, TIFFTAG_BITSPERSAMPLE, 8);
  TIFFSetField(tiff, TIFFTAG_SAMPLESPERPIXEL, 3);
  TIFFSetField(tiff, TIFFTAG_PLANARCONFIG, PLANARCONFIG_CONTIG);
  TIFFSetField(tiff, TIFFTAG_ORIENTATION, ORIENTATION_TOPLEFT);
  TIFFSetField(tiff, TIFFTAG_RESOLUTIONUNIT, RESUNIT_CENTIMETER);
  TIFFSetField(tiff, TIFFTAG_XRESOLUTION, 10000.0 / mpp);
  TIFFSetField(tiff, TIFFTAG_YRESOLUTION, 10000.0 / mpp);
  TIFFSetField(tiff, TIFFTAG_IMAGEDESCRIPTION, description.c_str());
  if (options.compression == TiffCompression::jpeg) {
    TIFFSetField(tiff, TIFFTAG_COMPRESSION, COMPRESSION_JPEG);
    TIFFSetField(tiff, TIFFTAG_PHOTOMETRIC, PHOTOMETRIC_YCBCR);
    TIFFSetField(tiff, TIFFTAG_JPEGQUALITY, options.jpeg_quality);
    TIFFSetField(tiff, TIFFTAG_JPEGCOLORMODE, JPEGCOLORMODE_RGB);
  } else {
    TIFFSetField(tiff, TIFFTAG_COMPRESSION, COMPRESSION_ADOBE_DEFLATE);
    TIFFSetField(tiff, TIFFTAG_PREDICTOR, PREDICTOR_HORIZONTAL);
    TIFFSetField(tiff, TIFFTAG_PHOTOMETRIC, PHOTOMETRIC_RGB);
  }
}

// The tile at (left, top); outside the picture its edge is repeated, which compresses without ringing.
void copy_tile(const Image& image, int64_t left, int64_t top, int64_t side, std::vector<uint8_t>& tile) {
  uint8_t* to = tile.data();
  for (int64_t y = 0; y < side; ++y) {
    const uint8_t* row = image.rgb.data() + std::min(top + y, image.height - 1) * image.width * kChannels;
    const int64_t inside = std::min(side, image.width - left);
    to = std::copy_n(row + left * kChannels, inside * kChannels, to);
    for (int64_t x = inside; x < side; ++x) to = std::copy_n(row + (image.width - 1) * kChannels, kChannels, to);
  }
}

void write_level(TIFF* tiff, const std::string& path, const Image& image, int64_t side) {
  std::vector<uint8_t> tile(static_cast<size_t>(side * side * kChannels));
  for (int64_t y = 0; y < image.height; y += side) {
    for (int64_t x = 0; x < image.width; x += side) {
      copy_tile(image, x, y, side, tile);
      PM_CHECK(TIFFWriteTile(tiff, tile.data(), static_cast<uint32_t>(x), static_cast<uint32_t>(y), 0, 0) >= 0, IoError,
               "{}: writing the TIFF failed (is the disk full?)", path);
    }
  }
  PM_CHECK(TIFFWriteDirectory(tiff) != 0, IoError, "{}: writing the TIFF failed (is the disk full?)", path);
}

}  // namespace

void write_pyramid_tiff(const std::string& path, const Image& image, double mpp, const TiffOptions& options) {
  PM_CHECK(image.width > 0 && image.height > 0 && image.width <= INT32_MAX && image.height <= INT32_MAX &&
               static_cast<int64_t>(image.rgb.size()) == image.width * image.height * kChannels,
           ShapeError, "{}: a picture of {} x {} with {} bytes cannot be written", path, image.width, image.height,
           image.rgb.size());
  PM_CHECK(std::isfinite(mpp) && mpp > 0.0, ConfigError, "mpp must be a positive number, got {}", mpp);
  PM_CHECK(options.tile >= 16 && options.tile % 16 == 0 && options.tile <= 8192, ConfigError,
           "the tile side must be a multiple of 16 up to 8192, got {}", options.tile);
  PM_CHECK(options.jpeg_quality >= 1 && options.jpeg_quality <= 100, ConfigError,
           "the JPEG quality must be 1 to 100, got {}", options.jpeg_quality);
  const TiffSilence silence;
  AtomicFile file(path);
  const bool big = static_cast<int64_t>(image.rgb.size()) > kBigTiffBytes;
  const int descriptor = ::dup(file.descriptor());
  PM_CHECK(descriptor >= 0, IoError, "{}: cannot be written: too many open files", path);
  TiffHandle tiff(TIFFFdOpen(descriptor, path.c_str(), big ? "w8" : "w"));
  if (tiff == nullptr) ::close(descriptor);
  PM_CHECK(tiff != nullptr, IoError, "{}: libtiff cannot write it", path);
  const Image* level = &image;
  Image smaller;
  for (double level_mpp = mpp;; level_mpp *= 2.0) {
    const std::string description =
        fmt::format("Aperio Image Library compatible\n{}x{} ({}x{})|AppMag = {:g}|MPP = {:.6g}", level->width,
                    level->height, options.tile, options.tile, std::round(1000.0 / mpp) / 100.0, mpp);
    set_tags(tiff.get(), *level, level != &image, level_mpp, description, options);
    write_level(tiff.get(), path, *level, options.tile);
    if (std::min(level->width, level->height) / 2 < options.tile) break;
    smaller = half_size(*level);
    level = &smaller;
  }
  PM_CHECK(TIFFFlush(tiff.get()) != 0, IoError, "{}: writing the TIFF failed (is the disk full?)", path);
  tiff.reset();
  file.commit();
}

}  // namespace pm::io
