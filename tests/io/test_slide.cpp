#include <omp.h>
#include <sys/stat.h>

#include <cmath>
#include <filesystem>

#include "engine/core/error.h"
#include "io/data/file.h"
#include "io/slide/slide.h"
#include "io/slide/tiff_writer.h"
#include "tests/io/pictures.h"
#include "tests/support/test.h"

namespace pm::test {
namespace fs = std::filesystem;
namespace {

constexpr io::TiffOptions kLossless{64, io::TiffCompression::deflate, 90};

io::SlideImage read_at(const std::string& path, double mpp, std::optional<double> slide_mpp = std::nullopt) {
  io::SlideOptions options;
  options.mpp = mpp;
  options.slide_mpp = slide_mpp;
  return io::read_slide(path, options);
}

std::string slide_error(const std::string& path, std::optional<double> slide_mpp = std::nullopt) {
  return error_message([&] { read_at(path, 4.0, slide_mpp); });
}

// Means over factor x factor blocks.
io::Image block_means(const io::Image& image, int64_t factor) {
  io::Image out{image.width / factor, image.height / factor, {}};
  for (int64_t y = 0; y < out.height; ++y) {
    for (int64_t x = 0; x < out.width; ++x) {
      for (int64_t c = 0; c < 3; ++c) {
        double sum = 0.0;
        for (int64_t j = 0; j < factor; ++j) {
          for (int64_t i = 0; i < factor; ++i) {
            sum += image.rgb[static_cast<size_t>(((y * factor + j) * image.width + x * factor + i) * 3 + c)];
          }
        }
        out.rgb.push_back(static_cast<uint8_t>(std::lround(sum / static_cast<double>(factor * factor))));
      }
    }
  }
  return out;
}

}  // namespace

TEST_CASE("a pyramid written is a slide with its resolution and pixels", "[cpu]") {
  const TempDir dir;
  const std::string path = dir.path() + "/a.tif";
  const io::Image image = picture(600, 333);
  io::write_pyramid_tiff(path, image, 0.5, kLossless);
  CHECK(io::is_whole_slide(path));
  const io::SlideInfo info = io::inspect_slide(path);
  CHECK(info.format == "aperio");
  CHECK(info.width == 600);
  CHECK(info.height == 333);
  REQUIRE(info.mpp.has_value());
  CHECK(*info.mpp == Approx(0.5));
  CHECK(info.mpp_source == "slide");
  REQUIRE(info.levels.size() == 3);
  CHECK(info.levels[2].width == 150);
  CHECK(info.levels[2].height == 83);
  CHECK(info.levels[2].downsample == 4.0);

  const io::SlideImage whole = read_at(path, 0.5);
  CHECK(max_difference(whole.image, image) == 0);
  CHECK(whole.mpp == 0.5);
  CHECK(whole.mpp_source == "slide");
  CHECK(whole.level == 0);
  CHECK(whole.bad_tiles == 0);
  CHECK(whole.tiles == 60);
  CHECK(whole.level0_width == 600);
  CHECK(max_difference(io::read_image_as_is(path).image, image) == 0);
  CHECK(io::read_image_as_is(path).mpp_source == "none");

  const io::SlideImage quarter = read_at(path, 2.0);
  CHECK(quarter.level == 2);
  CHECK(quarter.level_downsample == 4.0);
  CHECK(quarter.scale_x == Approx(4.0));
  CHECK(max_difference(quarter.image, block_means(image, 4)) <= 2);  // two roundings on the way
}

TEST_CASE("the level is the coarsest that is fine enough and the size follows the resolution", "[cpu]") {
  const TempDir dir;
  const std::string path = dir.path() + "/a.tif";
  io::write_pyramid_tiff(path, picture(512, 384), 0.25, kLossless);
  struct Case {
    double mpp;
    int level;
    int64_t width, height;
  };
  const Case expected = GENERATE(values<Case>({{0.25, 0, 512, 384},
                                               {0.3, 0, 427, 320},
                                               {0.499, 1, 257, 192},
                                               {0.5, 1, 256, 192},
                                               {0.7, 1, 183, 137},
                                               {1.5, 2, 85, 64},
                                               {4.0, 2, 32, 24},
                                               {0.125, 0, 1024, 768},
                                               {1000.0, 2, 1, 1}}));
  CAPTURE(expected.mpp);
  const io::SlideImage slide = read_at(path, expected.mpp);
  CHECK(slide.level == expected.level);
  CHECK(slide.image.width == expected.width);
  CHECK(slide.image.height == expected.height);
  CHECK(slide.mpp == expected.mpp);
  const io::SlideImage given = read_at(path, 4.0 * expected.mpp, 1.0);
  CHECK(given.mpp_source == "given");
  CHECK(max_difference(given.image, slide.image) == 0);
}

TEST_CASE("slides in JPEG keep their colours", "[cpu]") {
  const TempDir dir;
  const std::string path = dir.path() + "/a.svs";
  const io::Image image = picture(700, 500);
  io::write_pyramid_tiff(path, image, 0.4991);
  const io::SlideInfo info = io::inspect_slide(path);
  REQUIRE(info.mpp.has_value());
  CHECK(*info.mpp == Approx(0.4991));
  CHECK(mean_difference(read_at(path, 0.4991).image, image) < 6.0);
  CHECK(mean_difference(read_at(path, 1.9964).image, block_means(image, 4)) < 3.0);
}

TEST_CASE("slides read the same with any number of threads", "[cpu]") {
  const TempDir dir;
  const std::string path = dir.path() + "/a.tif";
  io::write_pyramid_tiff(path, picture(1500, 1300), 0.5, kLossless);
  const int threads = omp_get_max_threads();
  omp_set_num_threads(1);
  const io::SlideImage one = read_at(path, 0.83);
  omp_set_num_threads(5);
  const io::SlideImage five = read_at(path, 0.83);
  omp_set_num_threads(threads);
  CHECK(max_difference(one.image, five.image) == 0);
}

TEST_CASE("damaged tiles are white and counted, too many are refused", "[cpu]") {
  const TempDir dir;
  const std::string path = dir.path() + "/a.tif";
  const io::Image image = picture(512, 512);
  io::write_pyramid_tiff(path, image, 0.5, kLossless);  // 8 x 8 tiles
  for (const int tile : {9, 10, 63}) damage_tile(path, tile);
  const io::SlideImage slide = read_at(path, 0.5);
  CHECK(slide.tiles == 64);
  CHECK(slide.bad_tiles == 3);
  io::Image expected = image;
  for (int64_t y = 0; y < 512; ++y) {
    for (int64_t x = 0; x < 512; ++x) {
      const int64_t tile = y / 64 * 8 + x / 64;
      if (tile != 9 && tile != 10 && tile != 63) continue;
      for (int64_t c = 0; c < 3; ++c) expected.rgb[static_cast<size_t>((y * 512 + x) * 3 + c)] = 255;
    }
  }
  CHECK(max_difference(slide.image, expected) == 0);
  damage_tile(path, 30);
  CHECK_THAT(error_message([&] { read_at(path, 0.5); }), ContainsSubstring(path) && ContainsSubstring("damaged"));
  CHECK(read_at(path, 1.0).bad_tiles == 0);  // the next level is whole
}

TEST_CASE("pictures without resolution are read as they are, or as slides when it is given", "[cpu]") {
  const TempDir dir;
  const io::Image image = picture(90, 60);
  const std::string png = dir.path() + "/a.png";
  io::write_png(png, image);
  CHECK_FALSE(io::is_whole_slide(png));
  const io::SlideImage plain = read_at(png, 4.0);
  CHECK(max_difference(plain.image, image) == 0);
  CHECK(plain.mpp == 0.0);
  CHECK(plain.mpp_source == "none");
  CHECK(plain.format == "png");
  const io::SlideImage third = read_at(png, 4.0, 4.0 / 3.0);
  CHECK(third.mpp_source == "given");
  CHECK(max_difference(third.image, block_means(image, 3)) <= 1);
  CHECK_FALSE(io::inspect_slide(png).mpp.has_value());
  write_bytes(dir.path() + "/slide.svs", jpeg_bytes(90, 60, 3, image.rgb));  // the name does not matter
  CHECK(read_at(dir.path() + "/slide.svs", 4.0).format == "jpeg");
}

TEST_CASE("TIFFs that OpenSlide refuses are read through libtiff", "[cpu]") {
  const TempDir dir;
  const io::Image image = picture(120, 80);
  const std::string path = dir.path() + "/strips.tif";
  write_strip_tiff(path, image, 50800.0);  // 0.5 um per pixel
  CHECK_FALSE(io::is_whole_slide(path));
  const io::SlideImage slide = read_at(path, 1.0);
  CHECK(slide.format == "tiff");
  CHECK(slide.mpp_source == "slide");
  CHECK(max_difference(slide.image, block_means(image, 2)) <= 1);
  for (const double print : {0.0, 72.0, 96.0, 300.0, 600.0}) {
    CAPTURE(print);
    write_strip_tiff(path, image, print);
    CHECK_THAT(slide_error(path),
               ContainsSubstring("no physical resolution (mpp)") && ContainsSubstring("--slide-mpp"));
    CHECK(max_difference(read_at(path, 0.5, 0.5).image, image) == 0);
  }
}

TEST_CASE("what is no slide is named for what it is", "[cpu]") {
  struct Case {
    std::string bytes;
    const char* message;
  };
  const Case bad = GENERATE(values<Case>({
      {"", "is empty (0 bytes)"},
      {"slide_id,label\na,1\n", "a text file"},
      {std::string(4096, '\0'), "full of zero bytes"},
      {std::string(128, '\0') + "DICM" + std::string(64, '\1'), "a DICOM file"},
      {"PK\x03\x04" + std::string(100, '\2'), "a ZIP archive"},
      {"%PDF-1.7\n" + std::string(100, '\2'), "a PDF document"},
      {"ZISRAWFILE" + std::string(100, '\0'), "Zeiss CZI"},
      {std::string("II*\0\x08\0\0\0", 8), "a damaged TIFF"},
      {std::string("II*\0", 4), "a damaged TIFF"},
      {std::string("\x89PNG\r\n\x1a\n", 8), "damaged PNG"},
      {"\xff\xd8\xff\xe0", "damaged JPEG"},
      {std::string("\x01\x02\x03\x04", 4), "of no format that can be read"},
  }));
  const TempDir dir;
  const std::string path = dir.path() + "/case.svs";
  write_bytes(path, bad.bytes);
  CAPTURE(bad.message);
  CHECK_THAT(slide_error(path), ContainsSubstring(path) && ContainsSubstring(bad.message));
  CHECK_THAT(slide_error(path, 0.5), ContainsSubstring(path) && ContainsSubstring(bad.message));
  CHECK_THAT(error_message([&] { io::inspect_slide(path); }), ContainsSubstring(bad.message));
}

TEST_CASE("slides that are missing, folders, pipes or too large are refused", "[cpu]") {
  const TempDir dir;
  CHECK_THAT(slide_error(dir.path() + "/none.svs"), ContainsSubstring("no such file"));
  CHECK_THAT(slide_error(dir.path()), ContainsSubstring("is a folder"));
  const std::string pipe = dir.path() + "/pipe.svs";
  REQUIRE(::mkfifo(pipe.c_str(), 0600) == 0);
  CHECK_THAT(slide_error(pipe), ContainsSubstring("not a regular file"));
  CHECK_FALSE(io::is_whole_slide(dir.path() + "/none.svs"));
  const std::string path = dir.path() + "/a.tif";
  io::write_pyramid_tiff(path, picture(100, 100), 0.5, kLossless);
  io::SlideOptions options;
  options.mpp = 0.5;
  options.max_pixels = 9'999;
  CHECK_THAT(error_message([&] { io::read_slide(path, options); }),
             ContainsSubstring("100 x 100 pixels, at most 9999"));
  options.mpp = 1e-9;
  CHECK_THAT(error_message([&] { io::read_slide(path, options); }), ContainsSubstring("use a larger --mpp"));
  for (const double mpp : {0.0, -1.0, std::nan(""), HUGE_VAL}) {
    CHECK_THROWS_AS(read_at(path, mpp), ConfigError);
    CHECK_THROWS_AS(read_at(path, 4.0, mpp), ConfigError);
  }
}

TEST_CASE("slides cut anywhere are refused, or read in full where only smaller levels are lost", "[cpu]") {
  const TempDir dir;
  const std::string whole = dir.path() + "/whole.tif", cut = dir.path() + "/cut.tif";
  io::write_pyramid_tiff(whole, picture(200, 150), 0.5, {64, io::TiffCompression::jpeg, 80});
  const io::Image expected = read_at(whole, 0.5).image;
  const std::string bytes = io::read_file(whole);
  for (size_t length = 0; length < bytes.size(); length += length < 64 ? 1 : 397) {
    CAPTURE(length);
    write_bytes(cut, bytes.substr(0, length));
    io::Image read;
    const std::string message = error_message([&] { read = read_at(cut, 0.5).image; });
    CHECK((!message.empty() || max_difference(read, expected) == 0));
    if (length < bytes.size() / 2) CHECK_FALSE(message.empty());
  }
}

TEST_CASE("the pyramid writer checks what it is given", "[cpu]") {
  const TempDir dir;
  const std::string path = dir.path() + "/a.tif";
  CHECK_THROWS_AS(io::write_pyramid_tiff(path, io::Image{}, 0.5), ShapeError);
  CHECK_THROWS_AS(io::write_pyramid_tiff(path, picture(4, 4), 0.0), ConfigError);
  CHECK_THROWS_AS(io::write_pyramid_tiff(path, picture(4, 4), 0.5, {100, io::TiffCompression::jpeg, 90}), ConfigError);
  CHECK_THROWS_AS(io::write_pyramid_tiff(dir.path() + "/none/a.tif", picture(4, 4), 0.5), IoError);
  CHECK(fs::is_empty(dir.path()));
}

TEST_CASE("slides smaller than a tile keep every pixel in its place", "[cpu]") {
  const TempDir dir;
  const std::string path = dir.path() + "/a.tif";
  const io::Image image = picture(GENERATE(1, 40, 64, 90), GENERATE(1, 30, 64, 90));
  CAPTURE(image.width, image.height);
  io::write_pyramid_tiff(path, image, 0.5, kLossless);
  CHECK(max_difference(read_at(path, 0.5).image, image) == 0);
  io::write_pyramid_tiff(path, image, 0.5, {64, io::TiffCompression::jpeg, 95});
  CHECK(mean_difference(read_at(path, 0.5).image, image) < 8.0);
}

TEST_CASE("real slides are read at the resolution asked for", "[cpu][data]") {
  struct Case {
    const char* file;
    const char* format;
    std::optional<double> slide_mpp;
    int level;
    int64_t width, height;
    double red, green, blue;  // means over the finest level, read with OpenSlide's own tools where it is bounded
  };
  const Case expected = GENERATE(values<Case>({
      {"CMU-1-Small-Region.svs", "aperio", std::nullopt, 0, 277, 370, 214.0, 194.8, 207.9},
      {"tcga-cr-7395-01a-01-ts1.svs", "aperio", 0.5, 1, 555, 446, 217.6, 158.2, 188.2},
      {"C3L-00601-26_from-dzi_pyramid.tif", "generic-tiff", 0.5, 3, 684, 644, 221.0, 200.6, 212.6},
      {"test3-DAPI-2-387.ndpi", "hamamatsu", std::nullopt, 4, 226, 277, 0.9, 0.3, 41.0},
  }));
  CAPTURE(expected.file);
  const std::string path = data_dir() + "/slides/" + expected.file;
  const io::SlideImage slide = read_at(path, 4.0, expected.slide_mpp);
  CHECK(slide.format == expected.format);
  CHECK(slide.level == expected.level);
  CHECK(slide.bad_tiles == 0);
  CHECK(slide.image.width == expected.width);
  CHECK(slide.image.height == expected.height);
  double mean[3] = {0.0, 0.0, 0.0};
  for (size_t i = 0; i < slide.image.rgb.size(); ++i) mean[i % 3] += slide.image.rgb[i];
  const double pixels = static_cast<double>(slide.image.width * slide.image.height);
  CHECK(std::abs(mean[0] / pixels - expected.red) < 1.0);
  CHECK(std::abs(mean[1] / pixels - expected.green) < 1.0);
  CHECK(std::abs(mean[2] / pixels - expected.blue) < 1.0);
  if (expected.slide_mpp) CHECK_THAT(slide_error(path), ContainsSubstring("--slide-mpp"));
}

TEST_CASE("bad slides are refused with their name", "[cpu][data]") {
  const std::string folder = data_dir() + "/slides_bad/";
  for (const char* file : {"unopenable.tiff", "unreadable.svs", "histolab-broken.svs", "empty.svs", "text_renamed.svs",
                           "non_wsi.dcm", "mrxs_and_vms_stubs/Mirax2-Fluorescence-1.mrxs"}) {
    CAPTURE(file);
    CHECK_THAT(slide_error(folder + file), ContainsSubstring(file));
  }
  const std::string second_level = folder + "panimg-no_dzi_fails_at_level1.tif";
  CHECK_THAT(error_message([&] { read_at(second_level, 2.0); }),
             ContainsSubstring("damaged") && ContainsSubstring("level 1"));
}

}  // namespace pm::test
