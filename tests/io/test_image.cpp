#include <png.h>

#include <filesystem>

#include "engine/core/error.h"
#include "io/data/file.h"
#include "io/slide/image.h"
#include "tests/io/pictures.h"
#include "tests/support/test.h"

namespace pm::test {

TEST_CASE("png files written are read back bit for bit", "[cpu]") {
  const TempDir dir;
  const int64_t width = GENERATE(1, 3, 64, 257), height = GENERATE(1, 5, 100);
  const io::Image image = picture(width, height);
  io::write_png(dir.path() + "/a.png", image);
  const io::Image read = io::read_image(dir.path() + "/a.png");
  CHECK(max_difference(read, image) == 0);
  const io::ImageSize size = io::read_image_size(dir.path() + "/a.png");
  CHECK(size.width == width);
  CHECK(size.height == height);
  CHECK(size.format == "png");
}

TEST_CASE("png of every kind becomes RGB over white", "[cpu]") {
  using Bytes = std::vector<uint8_t>;
  const auto rgb = [](const std::string& bytes) { return io::decode_image(bytes, "t.png").rgb; };
  CHECK(rgb(png_bytes(2, 1, PNG_COLOR_TYPE_GRAY, 8, {7, 200})) == Bytes{7, 7, 7, 200, 200, 200});
  CHECK(rgb(png_bytes(3, 1, PNG_COLOR_TYPE_GRAY, 1, {0b10100000})) == Bytes{255, 255, 255, 0, 0, 0, 255, 255, 255});
  CHECK(rgb(png_bytes(2, 1, PNG_COLOR_TYPE_GRAY, 4, {0x0f})) == Bytes{0, 0, 0, 255, 255, 255});
  CHECK(rgb(png_bytes(2, 1, PNG_COLOR_TYPE_GRAY, 16, {0x80, 0x80, 0xff, 0xff})) == Bytes{128, 128, 128, 255, 255, 255});
  CHECK(rgb(png_bytes(1, 1, PNG_COLOR_TYPE_RGB, 16, {0x01, 0x01, 0x80, 0x80, 0xff, 0xff})) == Bytes{1, 128, 255});
  CHECK(rgb(png_bytes(2, 1, PNG_COLOR_TYPE_GRAY_ALPHA, 8, {0, 255, 0, 0})) == Bytes{0, 0, 0, 255, 255, 255});
  CHECK(rgb(png_bytes(2, 1, PNG_COLOR_TYPE_RGB_ALPHA, 8, {10, 20, 30, 255, 0, 100, 255, 51})) ==
        Bytes{10, 20, 30, 204, 224, 255});
  const Bytes palette = {1, 2, 3, 40, 50, 60, 0, 0, 0};
  CHECK(rgb(png_bytes(4, 1, PNG_COLOR_TYPE_PALETTE, 2, {0b00011000}, palette)) ==
        Bytes{1, 2, 3, 40, 50, 60, 0, 0, 0, 1, 2, 3});
  CHECK(rgb(png_bytes(2, 1, PNG_COLOR_TYPE_PALETTE, 8, {0, 1}, palette, {255, 0})) == Bytes{1, 2, 3, 255, 255, 255});
  const io::Image image = picture(19, 11);
  CHECK(rgb(png_bytes(19, 11, PNG_COLOR_TYPE_RGB, 8, image.rgb, {}, {}, true)) == image.rgb);
}

TEST_CASE("jpeg grey and colour, baseline and progressive", "[cpu]") {
  const bool progressive = GENERATE(false, true);
  const io::Image flat{40, 24, [] {
                         std::vector<uint8_t> rgb;
                         for (int i = 0; i < 40 * 24; ++i) rgb.insert(rgb.end(), {200, 100, 50});
                         return rgb;
                       }()};
  CHECK(max_difference(io::decode_image(jpeg_bytes(40, 24, 3, flat.rgb, progressive), "t.jpg"), flat) <= 3);
  const std::vector<uint8_t> grey(17 * 9, 90);
  const io::Image read = io::decode_image(jpeg_bytes(17, 9, 1, grey, progressive), "t.jpg");
  CHECK(read.width == 17);
  CHECK(read.height == 9);
  CHECK(read.rgb == std::vector<uint8_t>(17 * 9 * 3, 90));
  CHECK_THAT(error_message([&] { io::decode_image(jpeg_bytes(8, 8, 4, std::vector<uint8_t>(8 * 8 * 4, 9)), "t.jpg"); }),
             ContainsSubstring("t.jpg") && ContainsSubstring("CMYK"));
}

TEST_CASE("pictures cut anywhere are refused with the file's name", "[cpu]") {
  const io::Image image = picture(48, 40);
  const std::string bytes = GENERATE_COPY(png_bytes(48, 40, PNG_COLOR_TYPE_RGB, 8, image.rgb),
                                          jpeg_bytes(48, 40, 3, image.rgb), jpeg_bytes(48, 40, 3, image.rgb, true));
  for (size_t length = 0; length < bytes.size(); length += length < 700 ? 1 : 37) {
    CAPTURE(length);
    CHECK_THAT(error_message([&] { io::decode_image(std::string_view(bytes).substr(0, length), "t.img"); }),
               ContainsSubstring("t.img"));
  }
}

TEST_CASE("pictures with any byte changed are read or refused with IoError", "[cpu]") {
  const io::Image image = picture(16, 16);
  const std::string bytes =
      GENERATE_COPY(png_bytes(16, 16, PNG_COLOR_TYPE_RGB, 8, image.rgb), jpeg_bytes(16, 16, 3, image.rgb));
  for (size_t at = 8; at < bytes.size(); ++at) {
    std::string changed = bytes;
    changed[at] = static_cast<char>(~static_cast<unsigned char>(changed[at]));
    CAPTURE(at);
    CHECK_NOTHROW(error_message([&] { io::decode_image(changed, "t.img", 1 << 16); }));
  }
}

TEST_CASE("pictures above the limit and other files are refused", "[cpu]") {
  const io::Image image = picture(20, 10);
  CHECK_THAT(
      error_message([&] { io::decode_image(png_bytes(20, 10, PNG_COLOR_TYPE_RGB, 8, image.rgb), "t.png", 199); }),
      ContainsSubstring("20 x 10 pixels, at most 199"));
  CHECK_THAT(error_message([&] { io::decode_image(jpeg_bytes(20, 10, 3, image.rgb), "t.jpg", 199); }),
             ContainsSubstring("20 x 10 pixels, at most 199"));
  CHECK_THAT(error_message([] { io::decode_image("GIF89a", "t.gif"); }), ContainsSubstring("neither PNG nor JPEG"));
  CHECK_THAT(error_message([] { io::read_image("/no/such/file.png"); }), ContainsSubstring("no such file"));
  CHECK_THROWS_AS(io::write_png("/tmp/never.png", io::Image{}), ShapeError);
  CHECK_THROWS_AS(io::write_png("/tmp/never.png", io::Image{2, 2, {1, 2, 3}}), ShapeError);
}

TEST_CASE("every picture of the data folder is read", "[cpu][data]") {
  int files = 0;
  for (const char* folder : {"camelyon16_normal_level6", "tcga_brca_tumour_maps/png_ds4"}) {
    for (const auto& file : std::filesystem::directory_iterator(data_dir() + "/" + folder)) {
      if (file.path().extension() == ".csv" || files % 40 >= 24) {
        ++files;  // all of the first folder, some of the many maps
        continue;
      }
      CAPTURE(file.path().string());
      CHECK_NOTHROW(io::read_image(file.path().string()));
      ++files;
    }
  }
  CHECK(files > 24);
}

}  // namespace pm::test
