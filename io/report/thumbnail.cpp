// In this order: jpeglib.h needs FILE.
// clang-format off
#include <cstdio>
#include <jpeglib.h>
// clang-format on

#include <algorithm>
#include <cmath>
#include <csetjmp>
#include <cstdlib>

#include "engine/core/check.h"
#include "io/report/run_report.h"

namespace pm::io {
namespace {

constexpr int kQuality = 82;

struct Encoder {
  jpeg_error_mgr errors{};  // first: the library hands back a pointer to it
  std::jmp_buf on_error{};
  jpeg_compress_struct jpeg{};
  unsigned char* bytes = nullptr;  // allocated by the library
  unsigned long size = 0;
};

[[noreturn]] void leave(j_common_ptr jpeg) { std::longjmp(reinterpret_cast<Encoder*>(jpeg->err)->on_error, 1); }
void say_nothing(j_common_ptr) {}

// Owns nothing that needs a destructor: the library leaves it by longjmp.
bool encode(Encoder& encoder, const uint8_t* rgb, int64_t width, int64_t height) {
  if (setjmp(encoder.on_error) != 0) return false;
  jpeg_create_compress(&encoder.jpeg);
  jpeg_mem_dest(&encoder.jpeg, &encoder.bytes, &encoder.size);
  encoder.jpeg.image_width = static_cast<JDIMENSION>(width);
  encoder.jpeg.image_height = static_cast<JDIMENSION>(height);
  encoder.jpeg.input_components = 3;
  encoder.jpeg.in_color_space = JCS_RGB;
  jpeg_set_defaults(&encoder.jpeg);
  jpeg_set_quality(&encoder.jpeg, kQuality, TRUE);
  jpeg_start_compress(&encoder.jpeg, TRUE);
  while (encoder.jpeg.next_scanline < encoder.jpeg.image_height) {
    auto* row = const_cast<JSAMPLE*>(rgb + int64_t{encoder.jpeg.next_scanline} * width *
                                               3);  // the library does not write to it
    jpeg_write_scanlines(&encoder.jpeg, &row, 1);
  }
  jpeg_finish_compress(&encoder.jpeg);
  return true;
}

}  // namespace

Thumbnail make_thumbnail(const uint8_t* rgb, int64_t width, int64_t height, int64_t longest_side) {
  PM_CHECK(width > 0 && height > 0 && longest_side > 0, ShapeError,
           "a thumbnail of {} x {} pixels, longest side {}: all must be positive", width, height, longest_side);
  const double shrink = std::max(1.0, static_cast<double>(std::max(width, height)) / static_cast<double>(longest_side));
  Thumbnail thumbnail;
  thumbnail.width = std::max<int64_t>(1, std::llround(static_cast<double>(width) / shrink));
  thumbnail.height = std::max<int64_t>(1, std::llround(static_cast<double>(height) / shrink));
  std::vector<uint8_t> small(static_cast<size_t>(thumbnail.width * thumbnail.height * 3));
  // Means over boxes of whole pixels, each pixel in one box.
  for (int64_t row = 0; row < thumbnail.height; ++row) {
    const int64_t top = row * height / thumbnail.height,
                  bottom = std::max(top + 1, (row + 1) * height / thumbnail.height);
    for (int64_t column = 0; column < thumbnail.width; ++column) {
      const int64_t left = column * width / thumbnail.width,
                    right = std::max(left + 1, (column + 1) * width / thumbnail.width);
      int64_t sum[3] = {0, 0, 0};
      for (int64_t y = top; y < bottom; ++y) {
        for (int64_t x = left; x < right; ++x) {
          for (int64_t c = 0; c < 3; ++c) sum[c] += rgb[(y * width + x) * 3 + c];
        }
      }
      const int64_t pixels = (bottom - top) * (right - left);
      for (int64_t c = 0; c < 3; ++c) {
        small[static_cast<size_t>((row * thumbnail.width + column) * 3 + c)] =
            static_cast<uint8_t>((sum[c] + pixels / 2) / pixels);
      }
    }
  }
  Encoder encoder;
  encoder.jpeg.err = jpeg_std_error(&encoder.errors);
  encoder.errors.error_exit = leave;
  encoder.errors.output_message = say_nothing;
  const bool done = encode(encoder, small.data(), thumbnail.width, thumbnail.height);
  if (done) thumbnail.jpeg.assign(reinterpret_cast<const char*>(encoder.bytes), encoder.size);
  jpeg_destroy_compress(&encoder.jpeg);
  std::free(encoder.bytes);
  PM_CHECK(done, Error, "a thumbnail of {} x {} pixels cannot be encoded", thumbnail.width, thumbnail.height);
  return thumbnail;
}

}  // namespace pm::io
