// Writes pictures as tiled pyramidal TIFF slides that OpenSlide, QuPath and libtiff read.
#pragma once
#include <string>

#include "io/slide/image.h"

namespace pm::io {

enum class TiffCompression { jpeg, deflate };  // deflate keeps every pixel value

struct TiffOptions {
  int tile = 256;  // side of a tile, a multiple of 16
  TiffCompression compression = TiffCompression::jpeg;
  int jpeg_quality = 90;  // 1 to 100
};

// Level 0 is the picture, each further level half as large (mean of 2 x 2 pixels) as long as it fills a tile. mpp = micrometres
// per level-0 pixel; it is written to the resolution tags and, in the form of an Aperio description, where OpenSlide finds it
// as openslide.mpp-x. The file appears whole or not at all. Throws ShapeError, ConfigError or IoError.
void write_pyramid_tiff(const std::string& path, const Image& image, double mpp, const TiffOptions& options = {});

}  // namespace pm::io
