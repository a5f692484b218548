// RGB pictures in memory, and PNG and JPEG files.
//
// PNG: every colour type and bit depth; 16 bits are scaled to 8, transparency is laid over white, colour profiles and gamma
// are not applied. JPEG: grey and colour, baseline and progressive; CMYK is refused. Damaged or cut files are refused.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace pm::io {

struct Image {
  int64_t width = 0, height = 0;
  std::vector<uint8_t> rgb;  // (height, width, 3)
};

struct ImageSize {
  int64_t width = 0, height = 0;
  std::string format;  // "png" or "jpeg"
};

// Larger pictures are refused unless the caller says otherwise: 268 million pixels, 800 MB.
constexpr int64_t kMaxImagePixels = int64_t{1} << 28;

// "png", "jpeg", or "" by the first bytes of a file.
std::string_view image_format(std::string_view first_bytes);

// Throws IoError naming the file: missing, neither PNG nor JPEG, damaged, cut off, CMYK, more than max_pixels.
Image read_image(const std::string& path, int64_t max_pixels = kMaxImagePixels);
// The same from memory; `name` serves messages alone.
Image decode_image(std::string_view bytes, const std::string& name, int64_t max_pixels = kMaxImagePixels);
// From the header alone.
ImageSize read_image_size(const std::string& path);

// 8-bit RGB PNG. The file appears whole or not at all. Throws ShapeError when rgb is not (height, width, 3) or empty.
void write_png(const std::string& path, const Image& image);

}  // namespace pm::io
