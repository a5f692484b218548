#include <cmath>

#include "engine/core/error.h"
#include "io/slide/resample.h"
#include "tests/io/pictures.h"
#include "tests/support/test.h"

namespace pm::test {
namespace {

// Straight from the definition, in double.
io::Image area_reference(const io::Image& source, double scale_x, double scale_y) {
  io::Image out{
      io::AreaAverage::output_size(source.width, scale_x), io::AreaAverage::output_size(source.height, scale_y), {}};
  const auto overlap = [](double a0, double a1, double b0, double b1) {
    return std::max(0.0, std::min(a1, b1) - std::max(a0, b0));
  };
  for (int64_t i = 0; i < out.height; ++i) {
    for (int64_t j = 0; j < out.width; ++j) {
      for (int64_t c = 0; c < 3; ++c) {
        double sum = 0.0, area = 0.0;
        for (int64_t y = 0; y < source.height; ++y) {
          const double rows = overlap(i * scale_y, (i + 1) * scale_y, y, y + 1);
          for (int64_t x = 0; rows > 0.0 && x < source.width; ++x) {
            const double part = rows * overlap(j * scale_x, (j + 1) * scale_x, x, x + 1);
            sum += part * source.rgb[static_cast<size_t>((y * source.width + x) * 3 + c)];
            area += part;
          }
        }
        out.rgb.push_back(static_cast<uint8_t>(std::lround(sum / area)));
      }
    }
  }
  return out;
}

io::Image in_pieces(const io::Image& source, double scale_x, double scale_y, int64_t width, int64_t height) {
  io::AreaAverage average(source.width, source.height, scale_x, scale_y);
  for (int64_t y = 0; y < source.height; y += height) {
    for (int64_t x = 0; x < source.width; x += width) {
      const int64_t w = std::min(width, source.width - x), h = std::min(height, source.height - y);
      std::vector<uint8_t> rgb;
      for (int64_t j = 0; j < h; ++j) {
        const auto row = source.rgb.begin() + ((y + j) * source.width + x) * 3;
        rgb.insert(rgb.end(), row, row + w * 3);
      }
      average.add(average.average(rgb.data(), x, y, w, h));
    }
  }
  return average.take();
}

}  // namespace

TEST_CASE("area averages in pieces equal the definition", "[cpu]") {
  const io::Image source = picture(GENERATE(1, 7, 61), GENERATE(1, 10, 53));
  const double scale_x = GENERATE(1.0, 1.003, 2.0, 3.7, 16.0, 200.0), scale_y = GENERATE(1.0, 2.5, 8.016);
  const io::Image expected = area_reference(source, scale_x, scale_y);
  for (const auto& [width, height] : {std::pair<int64_t, int64_t>{1000, 1000}, {8, 8}, {5, 3}, {1, 1}}) {
    CAPTURE(source.width, source.height, scale_x, scale_y, width, height);
    CHECK(max_difference(in_pieces(source, scale_x, scale_y, width, height), expected) <=
          1);  // 1 where a mean ends on .5
  }
}

TEST_CASE("area average at scale 1 is the identity and keeps a flat colour at any scale", "[cpu]") {
  const io::Image source = picture(37, 29);
  CHECK(max_difference(in_pieces(source, 1.0, 1.0, 8, 8), source) == 0);
  io::AreaAverage copy(37, 29, 1.0, 1.0);
  CHECK(copy.is_copy());
  copy.place(source.rgb.data() + 10 * 37 * 3, 0, 10, 37, 19);
  copy.place(source.rgb.data(), 0, 0, 37, 10);
  CHECK(max_difference(copy.take(), source) == 0);
  CHECK_FALSE(io::AreaAverage(37, 29, 1.0, 1.1).is_copy());
  const io::Image flat{41, 23, std::vector<uint8_t>(41 * 23 * 3, 201)};
  for (const uint8_t value : in_pieces(flat, 3.3, 1.7, 8, 8).rgb) CHECK(value == 201);
  CHECK_THROWS_AS(io::AreaAverage(4, 4, 0.5, 1.0), ShapeError);
}

TEST_CASE("enlarging keeps sizes, corners and straight ramps", "[cpu]") {
  const io::Image source = picture(13, 9);
  CHECK(max_difference(io::enlarge(source, 1.0, 1.0), source) == 0);
  const io::Image twice = io::enlarge(source, 0.5, 0.5);
  CHECK(twice.width == 26);
  CHECK(twice.height == 18);
  CHECK(twice.rgb[0] == source.rgb[0]);
  CHECK(twice.rgb.back() == source.rgb.back());
  io::Image ramp{20, 1, {}};
  for (int x = 0; x < 20; ++x) ramp.rgb.insert(ramp.rgb.end(), 3, static_cast<uint8_t>(10 * x));
  const io::Image wide = io::enlarge(ramp, 0.25, 1.0);
  REQUIRE(wide.width == 80);
  for (int x = 2; x < 78; ++x) {  // centre of output pixel x in source pixels
    CHECK(std::abs(wide.rgb[static_cast<size_t>(3 * x)] - 10.0 * ((x + 0.5) * 0.25 - 0.5)) <= 0.5);
  }
}

}  // namespace pm::test
