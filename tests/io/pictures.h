// Small pictures and files for the tests of the readers.
#pragma once
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "io/slide/image.h"

namespace pm::test {

// Smooth colours with some texture; the same for the same arguments.
io::Image picture(int64_t width, int64_t height, uint64_t seed = 1);
double mean_difference(const io::Image& a, const io::Image& b);  // mean absolute difference of bytes; sizes must agree
int max_difference(const io::Image& a, const io::Image& b);
std::string error_message(const std::function<void()>& call);  // of an IoError, "" when none is thrown
void write_bytes(const std::string& path, const std::string& bytes);

// rows: packed samples as PNG wants them. colour_type and bit_depth as in libpng; `palette` as RGB, `transparent` per entry.
std::string png_bytes(int width, int height, int colour_type, int bit_depth, const std::vector<uint8_t>& rows,
                      const std::vector<uint8_t>& palette = {}, const std::vector<uint8_t>& transparent = {},
                      bool interlaced = false);
// components: 1 grey, 3 RGB, 4 CMYK
std::string jpeg_bytes(int width, int height, int components, const std::vector<uint8_t>& samples,
                       bool progressive = false);
// A TIFF in strips, which OpenSlide does not open. per_inch 0: no resolution.
void write_strip_tiff(const std::string& path, const io::Image& image, double per_inch);
// Overwrites the stored bytes of one tile of the first directory.
void damage_tile(const std::string& path, int tile);

}  // namespace pm::test
