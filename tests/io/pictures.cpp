#include "tests/io/pictures.h"

// In this order: jpeglib.h needs FILE.
// clang-format off
#include <cstdio>
#include <jpeglib.h>
// clang-format on
#include <png.h>
#include <tiffio.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <fstream>

#include "engine/core/error.h"
#include "engine/core/rng.h"

namespace pm::test {

io::Image picture(int64_t width, int64_t height, uint64_t seed) {
  io::Image image{width, height, {}};
  const RngState draw{seed, 0};
  for (int64_t y = 0; y < height; ++y) {
    for (int64_t x = 0; x < width; ++x) {
      for (int64_t c = 0; c < 3; ++c) {
        const double wave = std::sin(0.05 * static_cast<double>(x + 40 * c)) * std::cos(0.03 * static_cast<double>(y));
        const double noise = uniform_at(draw, (y * width + x) * 3 + c) - 0.5;
        image.rgb.push_back(static_cast<uint8_t>(std::clamp(128.0 + 90.0 * wave + 20.0 * noise, 0.0, 255.0)));
      }
    }
  }
  return image;
}

double mean_difference(const io::Image& a, const io::Image& b) {
  if (a.width != b.width || a.height != b.height || a.rgb.size() != b.rgb.size()) return 1e9;
  double sum = 0.0;
  for (size_t i = 0; i < a.rgb.size(); ++i) sum += std::abs(int{a.rgb[i]} - int{b.rgb[i]});
  return sum / static_cast<double>(a.rgb.size());
}

int max_difference(const io::Image& a, const io::Image& b) {
  if (a.width != b.width || a.height != b.height || a.rgb.size() != b.rgb.size()) return 1 << 20;
  int worst = 0;
  for (size_t i = 0; i < a.rgb.size(); ++i) worst = std::max(worst, std::abs(int{a.rgb[i]} - int{b.rgb[i]}));
  return worst;
}

std::string error_message(const std::function<void()>& call) {
  try {
    call();
  } catch (const IoError& error) {
    return error.what();
  }
  return "";
}

void write_bytes(const std::string& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary).write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
}

std::string png_bytes(int width, int height, int colour_type, int bit_depth, const std::vector<uint8_t>& rows,
                      const std::vector<uint8_t>& palette, const std::vector<uint8_t>& transparent, bool interlaced) {
  std::string bytes;
  png_structp png = png_create_write_struct(PNG_LIBPNG_VER_STRING, nullptr, nullptr, nullptr);
  png_infop info = png_create_info_struct(png);
  png_set_write_fn(
      png, &bytes,
      [](png_structp p, png_bytep data, size_t count) {
        static_cast<std::string*>(png_get_io_ptr(p))->append(reinterpret_cast<const char*>(data), count);
      },
      nullptr);
  png_set_IHDR(png, info, static_cast<png_uint_32>(width), static_cast<png_uint_32>(height), bit_depth, colour_type,
               interlaced ? PNG_INTERLACE_ADAM7 : PNG_INTERLACE_NONE, PNG_COMPRESSION_TYPE_DEFAULT,
               PNG_FILTER_TYPE_DEFAULT);
  std::vector<png_color> colours;
  for (size_t i = 0; i + 2 < palette.size(); i += 3) colours.push_back({palette[i], palette[i + 1], palette[i + 2]});
  if (!colours.empty()) png_set_PLTE(png, info, colours.data(), static_cast<int>(colours.size()));
  if (!transparent.empty()) png_set_tRNS(png, info, transparent.data(), static_cast<int>(transparent.size()), nullptr);
  png_write_info(png, info);
  std::vector<uint8_t> copy = rows;
  std::vector<png_bytep> pointers;
  const size_t row_bytes = png_get_rowbytes(png, info);
  for (int y = 0; y < height; ++y) pointers.push_back(copy.data() + static_cast<size_t>(y) * row_bytes);
  png_write_image(png, pointers.data());
  png_write_end(png, nullptr);
  png_destroy_write_struct(&png, &info);
  return bytes;
}

std::string jpeg_bytes(int width, int height, int components, const std::vector<uint8_t>& samples, bool progressive) {
  jpeg_compress_struct state{};
  jpeg_error_mgr errors{};
  state.err = jpeg_std_error(&errors);
  jpeg_create_compress(&state);
  unsigned char* memory = nullptr;
  unsigned long size = 0;
  jpeg_mem_dest(&state, &memory, &size);
  state.image_width = static_cast<JDIMENSION>(width);
  state.image_height = static_cast<JDIMENSION>(height);
  state.input_components = components;
  state.in_color_space = components == 1 ? JCS_GRAYSCALE : components == 3 ? JCS_RGB : JCS_CMYK;
  jpeg_set_defaults(&state);
  jpeg_set_quality(&state, 95, TRUE);
  if (progressive) jpeg_simple_progression(&state);
  jpeg_start_compress(&state, TRUE);
  std::vector<uint8_t> copy = samples;
  while (state.next_scanline < state.image_height) {
    JSAMPROW row = copy.data() + static_cast<size_t>(state.next_scanline) * static_cast<size_t>(width * components);
    jpeg_write_scanlines(&state, &row, 1);
  }
  jpeg_finish_compress(&state);
  jpeg_destroy_compress(&state);
  std::string bytes(reinterpret_cast<const char*>(memory), size);
  std::free(memory);
  return bytes;
}

void write_strip_tiff(const std::string& path, const io::Image& image, double per_inch) {
  TIFF* tiff = TIFFOpen(path.c_str(), "w");
  TIFFSetField(tiff, TIFFTAG_IMAGEWIDTH, static_cast<uint32_t>(image.width));
  TIFFSetField(tiff, TIFFTAG_IMAGELENGTH, static_cast<uint32_t>(image.height));
  TIFFSetField(tiff, TIFFTAG_BITSPERSAMPLE, 8);
  TIFFSetField(tiff, TIFFTAG_SAMPLESPERPIXEL, 3);
  TIFFSetField(tiff, TIFFTAG_PHOTOMETRIC, PHOTOMETRIC_RGB);
  TIFFSetField(tiff, TIFFTAG_PLANARCONFIG, PLANARCONFIG_CONTIG);
  TIFFSetField(tiff, TIFFTAG_COMPRESSION, COMPRESSION_ADOBE_DEFLATE);
  TIFFSetField(tiff, TIFFTAG_ROWSPERSTRIP, 16);
  if (per_inch > 0.0) {
    TIFFSetField(tiff, TIFFTAG_RESOLUTIONUNIT, RESUNIT_INCH);
    TIFFSetField(tiff, TIFFTAG_XRESOLUTION, per_inch);
    TIFFSetField(tiff, TIFFTAG_YRESOLUTION, per_inch);
  }
  std::vector<uint8_t> copy = image.rgb;
  for (int64_t y = 0; y < image.height; ++y) {
    TIFFWriteScanline(tiff, copy.data() + y * image.width * 3, static_cast<uint32_t>(y), 0);
  }
  TIFFClose(tiff);
}

void damage_tile(const std::string& path, int tile) {
  TIFF* tiff = TIFFOpen(path.c_str(), "r");
  const uint64_t offset = TIFFGetStrileOffset(tiff, static_cast<uint32_t>(tile));
  const uint64_t bytes = TIFFGetStrileByteCount(tiff, static_cast<uint32_t>(tile));
  TIFFClose(tiff);
  std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
  file.seekp(static_cast<std::streamoff>(offset));
  file << std::string(bytes, '\x5a');
}

}  // namespace pm::test
