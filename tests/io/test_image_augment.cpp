#include <algorithm>
#include <cmath>
#include <map>

#include "engine/core/error.h"
#include "io/data/image_augment.h"
#include "tests/io/pictures.h"
#include "tests/support/test.h"

namespace pm::test {
namespace {

constexpr uint64_t kSeed = 5;

io::Image uniform_picture(int64_t width, int64_t height, uint8_t value) {
  return {width, height, std::vector<uint8_t>(static_cast<size_t>(width * height * 3), value)};
}

// Grey columns of these values, `height` rows.
io::Image columns(const std::vector<uint8_t>& values, int64_t height) {
  io::Image image{static_cast<int64_t>(values.size()), height, {}};
  for (int64_t y = 0; y < height; ++y) {
    for (const uint8_t value : values) image.rgb.insert(image.rgb.end(), 3, value);
  }
  return image;
}

io::Image transposed(const io::Image& image) {
  io::Image result{image.height, image.width, std::vector<uint8_t>(image.rgb.size())};
  for (int64_t y = 0; y < image.height; ++y) {
    for (int64_t x = 0; x < image.width; ++x)
      std::copy_n(&image.rgb[static_cast<size_t>((y * image.width + x) * 3)], 3,
                  &result.rgb[static_cast<size_t>((x * image.height + y) * 3)]);
  }
  return result;
}

io::CropBox whole(const io::Image& image, bool flip = false) {
  return {0.0, 0.0, static_cast<double>(image.width), static_cast<double>(image.height), flip};
}

bool same(const io::CropBox& a, const io::CropBox& b) {
  return a.x == b.x && a.y == b.y && a.width == b.width && a.height == b.height && a.flip == b.flip;
}

}  // namespace

TEST_CASE("crops lie inside the picture and fill the ranges asked for", "[cpu]") {
  const io::ImageAugmentOptions options;
  double least = 1.0, most = 0.0, narrowest = 2.0, widest = 0.0, share = 0.0, left = 1.0, right = 0.0, log_ratio = 0.0;
  int64_t flips = 0;
  constexpr int64_t kDraws = 4000;
  for (int64_t i = 0; i < kDraws; ++i) {
    const io::CropBox box = io::draw_crop(options, 60, 50, kSeed, 3, i);
    REQUIRE(box.x >= 0.0);
    REQUIRE(box.y >= 0.0);
    REQUIRE(box.x + box.width <= 60.0 + 1e-9);
    REQUIRE(box.y + box.height <= 50.0 + 1e-9);
    const double area = box.width * box.height / 3000.0, ratio = box.width / box.height;
    least = std::min(least, area);
    most = std::max(most, area);
    narrowest = std::min(narrowest, ratio);
    widest = std::max(widest, ratio);
    left = std::min(left, box.x / (60.0 - box.width));
    right = std::max(right, box.x / (60.0 - box.width));
    share += area / kDraws;
    log_ratio += std::log(ratio) / kDraws;
    flips += box.flip;
  }
  CHECK(least == Approx(0.08).margin(0.005));
  CHECK(least >= 0.08 - 1e-9);
  CHECK(most > 0.95);
  CHECK(most <= 1.0 + 1e-9);
  CHECK(narrowest == Approx(0.75).margin(0.005));
  CHECK(narrowest >= 0.75 - 1e-9);
  CHECK(widest == Approx(4.0 / 3.0).margin(0.005));
  CHECK(widest <= 4.0 / 3.0 + 1e-9);
  CHECK(left < 0.01);
  CHECK(right > 0.99);
  CHECK(share == Approx(0.4616).margin(0.01));  // below the middle of 0.08 and 1: large ones fit less often
  CHECK(log_ratio == Approx(0.0).margin(0.03));
  CHECK(static_cast<double>(flips) / kDraws == Approx(0.5).margin(0.03));
}

TEST_CASE("crops depend on seed, epoch and image alone", "[cpu]") {
  io::ImageAugmentOptions options;
  const auto draw = [&](uint64_t seed, int64_t epoch, int64_t image) {
    return io::draw_crop(options, 640, 480, seed, epoch, image);
  };
  const io::CropBox box = draw(kSeed, 2, 7);
  CHECK(same(box, draw(kSeed, 2, 7)));
  CHECK_FALSE(same(box, draw(kSeed + 1, 2, 7)));
  CHECK_FALSE(same(box, draw(kSeed, 3, 7)));
  CHECK_FALSE(same(box, draw(kSeed, 2, 8)));
  options.flip = false;
  for (int64_t i = 0; i < 50; ++i) CHECK_FALSE(draw(kSeed, 0, i).flip);
}

TEST_CASE("crops that cannot be drawn are centred, or the whole picture", "[cpu]") {
  io::ImageAugmentOptions options;
  options.flip = false;
  options.min_area = 0.5;  // of 400 x 10 pixels nothing of that area fits
  CHECK(same(io::draw_crop(options, 400, 10, kSeed, 0, 0), {200.0 - 20.0 / 3.0, 0.0, 10.0 * (4.0 / 3.0), 10.0, false}));
  CHECK(same(io::draw_crop(options, 9, 400, kSeed, 0, 0), {0.0, 194.0, 9.0, 12.0, false}));
  options.min_area = 1.0;
  for (int64_t i = 0; i < 50; ++i)
    CHECK(same(io::draw_crop(options, 400, 10, kSeed, 0, i), {0.0, 0.0, 400.0, 10.0, false}));
  const io::CropBox pixel = io::draw_crop({}, 1, 1, kSeed, 0, 0);
  CHECK(pixel.width * pixel.height >= 0.08 - 1e-9);
  CHECK_THROWS_AS(io::draw_crop(options, 0, 5, kSeed, 0, 0), ShapeError);
}

TEST_CASE("resampling is exact where the answer is known", "[cpu]") {
  const io::Image image = picture(40, 40);
  CHECK(io::resample(image, whole(image), 40).rgb == image.rgb);
  // Part of a picture, pixel by pixel.
  const io::Image part = io::resample(image, {11.0, 6.0, 20.0, 20.0, false}, 20);
  for (int64_t y = 0; y < 20; ++y) {
    CHECK(std::equal(part.rgb.begin() + y * 60, part.rgb.begin() + (y + 1) * 60,
                     image.rgb.begin() + ((y + 6) * 40 + 11) * 3));
  }
  // A constant stays one at every size, place and value.
  for (const uint8_t value : {0, 1, 77, 254, 255}) {
    const io::Image constant = uniform_picture(61, 47, value);
    for (const int64_t size : {1, 2, 7, 32, 100, 224}) {
      CAPTURE(int{value}, size);
      CHECK(io::resample(constant, {3.3, 1.7, 50.1, 44.9, true}, size).rgb == uniform_picture(size, size, value).rgb);
    }
  }
  // Halved: the triangle is two pixels wide on each side, 1/8 3/8 3/8 1/8.
  const io::Image step = columns({0, 0, 0, 0, 200, 200, 200, 200}, 8);
  CHECK(io::resample(step, whole(step), 4).rgb == columns({0, 25, 175, 200}, 4).rgb);
  CHECK(io::resample(step, whole(step, true), 4).rgb == columns({200, 175, 25, 0}, 4).rgb);
  CHECK(io::resample(transposed(step), whole(step), 4).rgb == transposed(columns({0, 25, 175, 200}, 4)).rgb);
  CHECK(io::resample(transposed(step), whole(step, true), 4).rgb == transposed(columns({0, 25, 175, 200}, 4)).rgb);
  // The filter reaches beyond the box, where the picture goes on.
  CHECK(io::resample(step, {4.0, 0.0, 4.0, 4.0, false}, 2).rgb == columns({175, 200}, 2).rgb);
  // Doubled: pixel centres, clamped at the border.
  const io::Image two = columns({0, 200}, 2);
  CHECK(io::resample(two, whole(two), 4).rgb == columns({0, 50, 150, 200}, 4).rgb);
  CHECK(io::resample(two, {0.5, 0.5, 1.0, 1.0, false}, 2).rgb == columns({50, 150}, 2).rgb);
}

TEST_CASE("a flip mirrors what comes out", "[cpu]") {
  const io::Image image = picture(50, 30);
  for (const int64_t size : {12, 77}) {
    const io::Image straight = io::resample(image, {2.5, 3.0, 40.0, 22.0, false}, size);
    const io::Image flipped = io::resample(image, {2.5, 3.0, 40.0, 22.0, true}, size);
    CHECK(straight.rgb != flipped.rgb);
    bool mirrored = true;
    for (int64_t y = 0; y < size; ++y) {
      for (int64_t x = 0; x < size; ++x) {
        mirrored = mirrored && std::equal(&straight.rgb[static_cast<size_t>((y * size + x) * 3)],
                                          &straight.rgb[static_cast<size_t>((y * size + x) * 3)] + 3,
                                          &flipped.rgb[static_cast<size_t>((y * size + size - 1 - x) * 3)]);
      }
    }
    CHECK(mirrored);
  }
}

TEST_CASE("boxes outside the picture are refused", "[cpu]") {
  const io::Image image = picture(20, 10);
  for (const io::CropBox& box :
       {io::CropBox{-1, 0, 5, 5}, io::CropBox{0, -1, 5, 5}, io::CropBox{16, 0, 5, 5}, io::CropBox{0, 6, 5, 5},
        io::CropBox{0, 0, 0, 5}, io::CropBox{0, 0, 5, std::nan("")}}) {
    CAPTURE(box.x, box.y, box.width, box.height);
    CHECK_THROWS_AS(io::resample(image, box, 8), ShapeError);
  }
  CHECK_THROWS_AS(io::resample(image, {0, 0, 5, 5}, 0), ShapeError);
  CHECK_THROWS_AS(io::resample({20, 10, {}}, {0, 0, 5, 5}, 8), ShapeError);
}

TEST_CASE("validation takes the centre", "[cpu]") {
  const io::Image exact = picture(32, 32);
  CHECK(io::centre_crop(exact, 32).rgb == exact.rgb);
  const io::Image wide = picture(120, 64);  // 56 of 64 pixels, from (32, 4)
  const io::Image crop = io::centre_crop(wide, 56);
  for (int64_t y = 0; y < 56; ++y) {
    CHECK(std::equal(crop.rgb.begin() + y * 168, crop.rgb.begin() + (y + 1) * 168,
                     wide.rgb.begin() + ((y + 4) * 120 + 32) * 3));
  }
  CHECK(io::centre_crop(transposed(wide), 56).rgb == transposed(crop).rgb);
  CHECK(io::centre_crop(wide, 28).rgb == io::resample(wide, {32.0, 4.0, 56.0, 56.0, false}, 28).rgb);
}

TEST_CASE("erasing hits its share of pictures and of their area", "[cpu]") {
  const io::ImageAugmentOptions options;
  const io::Image plain = uniform_picture(32, 32, 90);
  constexpr int64_t kDraws = 4000;
  int64_t erased = 0, bytes = 0;
  double least = 1.0, most = 0.0, sum = 0.0;
  std::vector<int64_t> hits(32 * 32);
  for (int64_t i = 0; i < kDraws; ++i) {
    io::Image image = plain;
    io::erase(image, options, kSeed, 1, i);
    if (image.rgb == plain.rgb) continue;
    ++erased;
    int64_t left = 32, right = -1, top = 32, bottom = -1, changed = 0;
    for (int64_t k = 0; k < 32 * 32; ++k) {
      const uint8_t* pixel = &image.rgb[static_cast<size_t>(k * 3)];
      if (pixel[0] == 90 && pixel[1] == 90 && pixel[2] == 90) continue;
      left = std::min(left, k % 32);
      right = std::max(right, k % 32);
      top = std::min(top, k / 32);
      bottom = std::max(bottom, k / 32);
      ++hits[static_cast<size_t>(k)];
      ++changed;
      for (int c = 0; c < 3; ++c) sum += pixel[c];
      bytes += 3;
    }
    REQUIRE(changed == (right + 1 - left) * (bottom + 1 - top));  // a rectangle, nothing beside it
    const auto area = static_cast<double>(changed) / (32.0 * 32.0);
    least = std::min(least, area);
    most = std::max(most, area);
  }
  CHECK(static_cast<double>(erased) / kDraws == Approx(0.25).margin(0.02));
  CHECK(least == Approx(0.02).margin(0.005));
  CHECK(most == Approx(0.33).margin(0.02));
  CHECK(sum / static_cast<double>(bytes) == Approx(127.5).margin(1.0));
  CHECK(*std::min_element(hits.begin(), hits.end()) > 0);  // every place is reached, the corners too
}

TEST_CASE("erasing depends on seed, epoch and image alone", "[cpu]") {
  io::ImageAugmentOptions options;
  options.erase = 1.0;
  const io::Image plain = uniform_picture(40, 24, 90);
  const auto draw = [&](uint64_t seed, int64_t epoch, int64_t image) {
    io::Image result = plain;
    io::erase(result, options, seed, epoch, image);
    CHECK(result.rgb != plain.rgb);
    return result.rgb;
  };
  CHECK(draw(kSeed, 2, 7) == draw(kSeed, 2, 7));
  CHECK(draw(kSeed, 2, 7) != draw(kSeed + 1, 2, 7));
  CHECK(draw(kSeed, 2, 7) != draw(kSeed, 3, 7));
  CHECK(draw(kSeed, 2, 7) != draw(kSeed, 2, 8));
  options.erase = 0.0;
  for (int64_t i = 0; i < 50; ++i) {
    io::Image image = plain;
    io::erase(image, options, kSeed, 0, i);
    CHECK(image.rgb == plain.rgb);
  }
  io::Image tiny = uniform_picture(1, 1, 90);
  options.erase = 1.0;
  io::erase(tiny, options, kSeed, 0, 0);  // nothing fits
  CHECK(tiny.rgb == uniform_picture(1, 1, 90).rgb);
}

TEST_CASE("mixup draws from Beta(alpha, alpha)", "[cpu]") {
  constexpr int64_t kDraws = 40000;
  for (const double alpha : {0.01, 0.2, 1.0, 8.0}) {
    CAPTURE(alpha);
    double mean = 0.0, square = 0.0, neighbours = 0.0, previous = 0.5;
    int64_t low = 0, high = 0;
    for (int64_t i = 0; i < kDraws; ++i) {
      const double lambda = io::draw_mixup(alpha, kSeed, 4, i);
      REQUIRE(lambda >= 0.0);
      REQUIRE(lambda <= 1.0);
      mean += lambda / kDraws;
      square += lambda * lambda / kDraws;
      neighbours += (lambda - 0.5) * (previous - 0.5) / kDraws;
      previous = lambda;
      low += lambda < 0.3;
      high += lambda > 0.7;
    }
    CHECK(mean == Approx(0.5).margin(0.01));
    CHECK(square - mean * mean == Approx(0.25 / (2.0 * alpha + 1.0)).epsilon(0.03));
    CHECK(neighbours / (square - mean * mean) == Approx(0.0).margin(0.02));  // batches share no random words
    CHECK(static_cast<double>(low - high) / kDraws == Approx(0.0).margin(0.015));
    if (alpha == 1.0) CHECK(static_cast<double>(low) / kDraws == Approx(0.3).margin(0.01));  // uniform
  }
  CHECK(io::draw_mixup(0.2, kSeed, 4, 9) == io::draw_mixup(0.2, kSeed, 4, 9));
  CHECK(io::draw_mixup(0.2, kSeed, 4, 9) != io::draw_mixup(0.2, kSeed, 4, 10));
  CHECK(io::draw_mixup(0.2, kSeed, 4, 9) != io::draw_mixup(0.2, kSeed, 5, 9));
  CHECK(io::draw_mixup(0.2, kSeed, 4, 9) != io::draw_mixup(0.2, kSeed + 1, 4, 9));
  CHECK(io::draw_mixup(0.0, kSeed, 4, 9) == 1.0);
  CHECK_THROWS_AS(io::draw_mixup(-0.1, kSeed, 4, 9), ConfigError);
}

}  // namespace pm::test
