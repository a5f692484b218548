#include "io/slide/image.h"

// In this order: jpeglib.h needs FILE, jerror.h needs jpeglib.h.
// clang-format off
#include <cstdio>
#include <jpeglib.h>
#include <jerror.h>
// clang-format on
#include <png.h>

#include <algorithm>
#include <array>
#include <csetjmp>
#include <cstring>

#include "engine/core/check.h"
#include "io/data/atomic_file.h"
#include "io/data/file.h"

namespace pm::io {
namespace {

constexpr int64_t kChannels = 3;
constexpr size_t kMessageBytes = 256;
constexpr int64_t kMaxFileBytes = int64_t{1} << 32;

void check_size(const std::string& name, int64_t width, int64_t height, int64_t max_pixels) {
  PM_CHECK(width > 0 && height > 0, IoError, "{}: the picture has no pixels ({} x {})", name, width, height);
  PM_CHECK(width <= max_pixels / height, IoError, "{}: {} x {} pixels, at most {} are read", name, width, height,
           max_pixels);
}

// Both libraries report errors by longjmp. The functions between setjmp and the library own nothing that needs a destructor;
// all state lives in a struct outside.

// ---------------------------------------------------------------- JPEG
struct JpegDecoder {
  jpeg_error_mgr errors{};  // first: the library hands back a pointer to it
  jpeg_decompress_struct state{};
  std::jmp_buf on_error{};
  std::array<char, kMessageBytes> message{};
  Image image;

  JpegDecoder();
  ~JpegDecoder() { jpeg_destroy_decompress(&state); }
  JpegDecoder(const JpegDecoder&) = delete;
  JpegDecoder& operator=(const JpegDecoder&) = delete;
};

[[noreturn]] void jpeg_failed(j_common_ptr state) {
  auto* decoder = reinterpret_cast<JpegDecoder*>(state->err);
  std::array<char, JMSG_LENGTH_MAX> text{};
  state->err->format_message(state, text.data());
  std::strncpy(decoder->message.data(), text.data(), kMessageBytes - 1);
  std::longjmp(decoder->on_error, 1);
}

// Warnings that mean lost pixels end the decoding; stray bytes between segments and unknown version numbers do not.
void jpeg_warned(j_common_ptr state, int level) {
  if (level >= 0) return;
  switch (state->err->msg_code) {
    case JWRN_HIT_MARKER:
    case JWRN_HUFF_BAD_CODE:
    case JWRN_ARITH_BAD_CODE:
    case JWRN_JPEG_EOF:
    case JWRN_MUST_RESYNC:
    case JWRN_BOGUS_PROGRESSION:
    case JWRN_NOT_SEQUENTIAL:
      jpeg_failed(state);
    default:
      return;
  }
}

void jpeg_silent(j_common_ptr) {}

JpegDecoder::JpegDecoder() {
  state.err = jpeg_std_error(&errors);
  errors.error_exit = jpeg_failed;
  errors.emit_message = jpeg_warned;
  errors.output_message = jpeg_silent;
}

bool jpeg_header(JpegDecoder& decoder, const unsigned char* bytes, size_t size) {
  if (setjmp(decoder.on_error) != 0) return false;
  jpeg_create_decompress(&decoder.state);
  jpeg_mem_src(&decoder.state, bytes, static_cast<unsigned long>(size));
  jpeg_read_header(&decoder.state, TRUE);
  return true;
}

bool jpeg_pixels(JpegDecoder& decoder) {
  if (setjmp(decoder.on_error) != 0) return false;
  decoder.state.out_color_space = JCS_RGB;
  jpeg_start_decompress(&decoder.state);
  while (decoder.state.output_scanline < decoder.state.output_height) {
    JSAMPROW row = decoder.image.rgb.data() + int64_t{decoder.state.output_scanline} * decoder.image.width * kChannels;
    jpeg_read_scanlines(&decoder.state, &row, 1);
  }
  jpeg_finish_decompress(&decoder.state);
  return true;
}

void read_jpeg_header(JpegDecoder& decoder, std::string_view bytes, const std::string& name) {
  PM_CHECK(jpeg_header(decoder, reinterpret_cast<const unsigned char*>(bytes.data()), bytes.size()), IoError,
           "{}: damaged JPEG: {}", name, decoder.message.data());
  decoder.image.width = decoder.state.image_width;
  decoder.image.height = decoder.state.image_height;
}

Image decode_jpeg(std::string_view bytes, const std::string& name, int64_t max_pixels) {
  JpegDecoder decoder;
  read_jpeg_header(decoder, bytes, name);
  check_size(name, decoder.image.width, decoder.image.height, max_pixels);
  const J_COLOR_SPACE space = decoder.state.jpeg_color_space;
  PM_CHECK(space == JCS_GRAYSCALE || space == JCS_YCbCr || space == JCS_RGB, IoError,
           "{}: JPEG in {} colours; convert it to RGB", name,
           space == JCS_CMYK || space == JCS_YCCK ? "CMYK" : "unknown");
  decoder.image.rgb.resize(static_cast<size_t>(decoder.image.width * decoder.image.height * kChannels));
  PM_CHECK(jpeg_pixels(decoder), IoError, "{}: damaged JPEG: {}", name, decoder.message.data());
  return std::move(decoder.image);
}

// ---------------------------------------------------------------- PNG
struct PngReader {
  std::string_view bytes;
  size_t position = 0;
  png_structp png = nullptr;
  png_infop info = nullptr;
  std::array<char, kMessageBytes> message{};
  int64_t width = 0, height = 0, channels = 0;
  std::vector<uint8_t> pixels;  // (height, width, channels)
  std::vector<png_bytep> rows;

  ~PngReader() { png_destroy_read_struct(&png, &info, nullptr); }
};

struct PngWriter {
  std::string bytes;
  png_structp png = nullptr;
  png_infop info = nullptr;
  std::array<char, kMessageBytes> message{};

  ~PngWriter() { png_destroy_write_struct(&png, &info); }
};

[[noreturn]] void png_failed(png_structp png, png_const_charp text) {
  std::strncpy(static_cast<char*>(png_get_error_ptr(png)), text, kMessageBytes - 1);
  png_longjmp(png, 1);
}

void png_warned(png_structp, png_const_charp) {}

void png_take(png_structp png, png_bytep out, size_t count) {
  auto* reader = static_cast<PngReader*>(png_get_io_ptr(png));
  if (count > reader->bytes.size() - reader->position) png_error(png, "the file is cut off");
  std::memcpy(out, reader->bytes.data() + reader->position, count);
  reader->position += count;
}

void png_give(png_structp png, png_bytep data, size_t count) {
  auto* writer = static_cast<PngWriter*>(png_get_io_ptr(png));
  bool full = false;
  try {
    writer->bytes.append(reinterpret_cast<const char*>(data), count);
  } catch (...) {  // must not pass through the C library
    full = true;
  }
  if (full) png_error(png, "out of memory");
}

void png_flushed(png_structp) {}

bool png_header(PngReader& reader) {
  if (setjmp(png_jmpbuf(reader.png)) != 0) return false;
  png_set_read_fn(reader.png, &reader, png_take);
  png_set_user_limits(reader.png, PNG_UINT_31_MAX, PNG_UINT_31_MAX);  // the caller checks the product
  png_read_info(reader.png, reader.info);
  png_set_expand(reader.png);
  png_set_scale_16(reader.png);
  png_set_gray_to_rgb(reader.png);
  png_set_interlace_handling(reader.png);
  png_read_update_info(reader.png, reader.info);
  reader.width = png_get_image_width(reader.png, reader.info);
  reader.height = png_get_image_height(reader.png, reader.info);
  reader.channels = png_get_channels(reader.png, reader.info);
  return true;
}

bool png_pixels(PngReader& reader) {
  if (setjmp(png_jmpbuf(reader.png)) != 0) return false;
  png_read_image(reader.png, reader.rows.data());
  png_read_end(reader.png, nullptr);
  return true;
}

void read_png_header(PngReader& reader, std::string_view bytes, const std::string& name) {
  reader.bytes = bytes;
  reader.png = png_create_read_struct(PNG_LIBPNG_VER_STRING, reader.message.data(), png_failed, png_warned);
  reader.info = reader.png != nullptr ? png_create_info_struct(reader.png) : nullptr;
  PM_CHECK(reader.info != nullptr, Error, "libpng could not be started");
  PM_CHECK(png_header(reader), IoError, "{}: damaged PNG: {}", name, reader.message.data());
}

// Pixels with an alpha channel over white, in place.
void flatten(std::vector<uint8_t>& pixels, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const uint8_t* from = pixels.data() + 4 * i;
    uint8_t* to = pixels.data() + kChannels * i;
    const int alpha = from[3];
    for (int c = 0; c < kChannels; ++c)
      to[c] = static_cast<uint8_t>((from[c] * alpha + 255 * (255 - alpha) + 127) / 255);
  }
  pixels.resize(static_cast<size_t>(count * kChannels));
}

Image decode_png(std::string_view bytes, const std::string& name, int64_t max_pixels) {
  PngReader reader;
  read_png_header(reader, bytes, name);
  check_size(name, reader.width, reader.height, max_pixels);
  PM_CHECK(reader.channels == 3 || reader.channels == 4, IoError, "{}: PNG with {} channels", name, reader.channels);
  const int64_t row_bytes = reader.width * reader.channels;
  reader.pixels.resize(static_cast<size_t>(reader.height * row_bytes));
  for (int64_t y = 0; y < reader.height; ++y) reader.rows.push_back(reader.pixels.data() + y * row_bytes);
  PM_CHECK(png_pixels(reader), IoError, "{}: damaged PNG: {}", name, reader.message.data());
  if (reader.channels == 4) flatten(reader.pixels, reader.width * reader.height);
  return {reader.width, reader.height, std::move(reader.pixels)};
}

bool png_encode(PngWriter& writer, const Image& image) {
  if (setjmp(png_jmpbuf(writer.png)) != 0) return false;
  png_set_write_fn(writer.png, &writer, png_give, png_flushed);
  png_set_IHDR(writer.png, writer.info, static_cast<png_uint_32>(image.width), static_cast<png_uint_32>(image.height),
               8, PNG_COLOR_TYPE_RGB, PNG_INTERLACE_NONE, PNG_COMPRESSION_TYPE_DEFAULT, PNG_FILTER_TYPE_DEFAULT);
  png_write_info(writer.png, writer.info);
  for (int64_t y = 0; y < image.height; ++y) png_write_row(writer.png, image.rgb.data() + y * image.width * kChannels);
  png_write_end(writer.png, nullptr);
  return true;
}

}  // namespace

std::string_view image_format(std::string_view first_bytes) {
  if (first_bytes.starts_with("\x89PNG\r\n\x1a\n")) return "png";
  if (first_bytes.starts_with("\xff\xd8\xff")) return "jpeg";
  return "";
}

Image decode_image(std::string_view bytes, const std::string& name, int64_t max_pixels) {
  PM_CHECK(!bytes.empty(), IoError, "{}: is empty (0 bytes)", name);
  const std::string_view format = image_format(bytes);
  PM_CHECK(!format.empty(), IoError, "{}: is neither PNG nor JPEG", name);
  return format == "png" ? decode_png(bytes, name, max_pixels) : decode_jpeg(bytes, name, max_pixels);
}

Image read_image(const std::string& path, int64_t max_pixels) {
  return decode_image(read_file(path, kMaxFileBytes), path, max_pixels);
}

ImageSize read_image_size(const std::string& path) {
  const std::string bytes = read_file(path, kMaxFileBytes);
  if (image_format(bytes) == "png") {
    PngReader reader;
    read_png_header(reader, bytes, path);
    return {reader.width, reader.height, "png"};
  }
  PM_CHECK(image_format(bytes) == "jpeg", IoError, "{}: is neither PNG nor JPEG", path);
  JpegDecoder decoder;
  read_jpeg_header(decoder, bytes, path);
  return {decoder.image.width, decoder.image.height, "jpeg"};
}

void write_png(const std::string& path, const Image& image) {
  PM_CHECK(image.width > 0 && image.height > 0 && image.width <= PNG_UINT_31_MAX && image.height <= PNG_UINT_31_MAX &&
               static_cast<int64_t>(image.rgb.size()) == image.width * image.height * kChannels,
           ShapeError, "{}: a picture of {} x {} needs {} bytes, got {}", path, image.width, image.height,
           image.width * image.height * kChannels, image.rgb.size());
  PngWriter writer;
  writer.png = png_create_write_struct(PNG_LIBPNG_VER_STRING, writer.message.data(), png_failed, png_warned);
  writer.info = writer.png != nullptr ? png_create_info_struct(writer.png) : nullptr;
  PM_CHECK(writer.info != nullptr, Error, "libpng could not be started");
  PM_CHECK(png_encode(writer, image), IoError, "{}: PNG: {}", path, writer.message.data());
  write_file_atomically(path, writer.bytes);
}

}  // namespace pm::io
