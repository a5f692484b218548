#include <algorithm>
#include <cmath>

#include "engine/core/error.h"
#include "engine/ops/token/serialize.h"
#include "io/slide/augment.h"
#include "io/slide/slide.h"
#include "io/slide/windows.h"
#include "tests/io/pictures.h"
#include "tests/support/test.h"

namespace pm::test {
namespace {

io::Image blank(int64_t width, int64_t height, uint8_t value = 255) {
  return {width, height, std::vector<uint8_t>(static_cast<size_t>(width * height * 3), value)};
}

void paint(io::Image& image, int64_t left, int64_t top, int64_t width, int64_t height, std::array<uint8_t, 3> colour) {
  for (int64_t y = top; y < top + height; ++y) {
    for (int64_t x = left; x < left + width; ++x)
      std::copy(colour.begin(), colour.end(), image.rgb.begin() + (y * image.width + x) * 3);
  }
}

constexpr std::array<uint8_t, 3> kPink = {220, 130, 180};

std::array<uint8_t, 3> pixel(const io::Image& image, int64_t x, int64_t y) {
  const uint8_t* at = image.rgb.data() + (y * image.width + x) * 3;
  return {at[0], at[1], at[2]};
}

Tensor tokens_of(const io::Image& image, int64_t region_size, ScanOrder scan) {
  const Tensor pixels = Tensor::from_host(cpu(), {1, image.height, image.width, 3}, image.rgb);
  return ops::serialize(cpu(), pixels, normal(3, {1, 1, 3}), {region_size, scan, DType::f64});
}

}  // namespace

TEST_CASE("tissue is what is saturated, without specks", "[cpu]") {
  io::Image image = blank(60, 40, 240);  // grey background: saturation 0
  paint(image, 20, 10, 20, 20, kPink);   // tissue
  paint(image, 50, 30, 3, 3, kPink);     // a speck, smaller than half of 7 x 7
  const io::TissueMask mask = io::tissue_mask(image, 0.0);
  CHECK(mask.shrink == 1);
  CHECK(mask.width == 60);
  CHECK(mask.tissue[20 * 60 + 30] == 1);
  CHECK(mask.tissue[5 * 60 + 5] == 0);
  CHECK(mask.tissue[31 * 60 + 51] == 0);
  CHECK(std::count(mask.tissue.begin(), mask.tissue.end(), 1) > 340);
  CHECK(std::count(mask.tissue.begin(), mask.tissue.end(), 1) <= 400);
  io::TissueOptions fine;
  fine.median = 1;
  CHECK(std::count_if(mask.tissue.begin(), mask.tissue.end(), [](uint8_t t) { return t > 1; }) == 0);
  const io::TissueMask unfiltered = io::tissue_mask(image, 0.0, fine);
  CHECK(std::count(unfiltered.tissue.begin(), unfiltered.tissue.end(), 1) == 409);
  // The threshold itself: (255, 246, 250) has saturation 9, (255, 247, 250) has 8.
  io::Image faint = blank(2, 1);
  paint(faint, 0, 0, 1, 1, {255, 246, 250});
  paint(faint, 1, 0, 1, 1, {255, 247, 250});
  CHECK(io::tissue_mask(faint, 0.0, fine).tissue == std::vector<uint8_t>{1, 0});
  // 4 um per pixel to 16: blocks of 4 x 4, the last ones cut.
  const io::TissueMask coarse = io::tissue_mask(blank(61, 41), 4.0);
  CHECK(coarse.shrink == 4);
  CHECK(coarse.width == 16);
  CHECK(coarse.height == 11);
  fine.median = 4;
  CHECK_THROWS_AS(io::tissue_mask(image, 0.0, fine), ConfigError);
}

TEST_CASE("the vote over sums equals a median filter", "[cpu]") {
  const io::Image image = picture(37, 23, 5);
  io::TissueOptions options;
  options.saturation = 180;
  options.median = 5;
  const io::TissueMask mask = io::tissue_mask(image, 0.0, options);
  const auto saturation = [&](int64_t x, int64_t y) {
    const auto p = pixel(image, std::clamp<int64_t>(x, 0, 36), std::clamp<int64_t>(y, 0, 22));
    const double high = *std::max_element(p.begin(), p.end()), low = *std::min_element(p.begin(), p.end());
    return high == 0.0 ? 0L : std::lround(255.0 * (high - low) / high);
  };
  int64_t tissue = 0;
  for (int64_t y = 0; y < 23; ++y) {
    for (int64_t x = 0; x < 37; ++x) {
      std::vector<long> around;
      for (int64_t j = -2; j <= 2; ++j) {
        for (int64_t i = -2; i <= 2; ++i) around.push_back(saturation(x + i, y + j));
      }
      std::nth_element(around.begin(), around.begin() + 12, around.end());
      CHECK(mask.tissue[static_cast<size_t>(y * 37 + x)] == (around[12] > 180 ? 1 : 0));
      tissue += mask.tissue[static_cast<size_t>(y * 37 + x)];
    }
  }
  CHECK(tissue > 0);
  CHECK(tissue < 37 * 23);
}

TEST_CASE("a window is background when none of it is tissue", "[cpu]") {
  io::Image image = blank(100, 70);
  paint(image, 33, 33, 20, 20, kPink);
  const io::WindowChoice choice = io::find_background(image, io::tissue_mask(image, 0.0), 32);
  CHECK(choice.grid.rows == 3);
  CHECK(choice.grid.cols == 4);
  CHECK(choice.background == std::vector<uint8_t>{1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 1});
  CHECK(choice.background_count == 11);
  CHECK_FALSE(choice.no_tissue);
  // A mask pixel on the border of two windows makes both tissue: nothing is lost.
  io::Image border = blank(96, 96);
  paint(border, 24, 24, 24, 24, kPink);
  io::TissueOptions options;
  options.median = 1;
  const io::WindowChoice straddling = io::find_background(border, io::tissue_mask(border, 0.66, options), 32);
  CHECK(straddling.background == std::vector<uint8_t>{0, 0, 1, 0, 0, 1, 1, 1, 1});
  // Grey pictures have no saturation: everything stays.
  const io::WindowChoice grey = io::find_background(blank(64, 64, 90), io::tissue_mask(blank(64, 64, 90), 0.0), 32);
  CHECK(grey.no_tissue);
  CHECK(grey.background_count == 0);
  CHECK_THROWS_AS(io::find_background(blank(64, 65), io::tissue_mask(blank(64, 64), 0.0), 32), ShapeError);
}

TEST_CASE("packed windows are the network's sequence without those left out", "[cpu]") {
  const auto scan = GENERATE(ScanOrder::boustrophedon, ScanOrder::raster);
  const io::Image image = picture(5 * 8 - 3, 3 * 8 - 5);  // the last windows reach beyond the picture
  const io::PictureGrid grid{3, 5, 8};
  std::vector<uint8_t> keep(15, 1);
  for (const size_t dropped : {0u, 4u, 6u, 7u, 14u}) keep[dropped] = 0;
  std::vector<int64_t> order;
  const io::Image packed = io::pack_windows(image, grid, keep, scan == ScanOrder::raster, &order);
  CHECK(packed.height == 8);
  CHECK(packed.width == 80);
  REQUIRE(order.size() == 10);
  const std::vector<double> whole = tokens_of(image, 8, scan).to_host<double>(),
                            part = tokens_of(packed, 8, scan).to_host<double>();
  const size_t window = 65 * 3;
  REQUIRE(part.size() == 10 * window);
  size_t next = 0;
  for (int64_t position = 0; position < 15; ++position) {
    const MapCell<int64_t> cell = scan_cell<int64_t>(scan, 5, position);
    if (!keep[static_cast<size_t>(cell.row * 5 + cell.col)]) continue;
    CHECK(order[next] == cell.row * 5 + cell.col);
    CHECK(std::equal(part.begin() + static_cast<int64_t>(next * window),
                     part.begin() + static_cast<int64_t>((next + 1) * window),
                     whole.begin() + static_cast<int64_t>(static_cast<size_t>(position) * window)));
    ++next;
  }
  CHECK(io::pack_windows(image, grid, std::vector<uint8_t>(15, 1)).rgb == image.rgb);
  CHECK_THROWS_AS(io::pack_windows(image, grid, std::vector<uint8_t>(15, 0)), ShapeError);
  CHECK_THROWS_AS(io::pack_windows(image, grid, std::vector<uint8_t>(14, 1)), ShapeError);
}

TEST_CASE("turns, flips and shifts move every pixel to its place", "[cpu]") {
  const io::Image image = picture(70, 131);
  io::Augmentation turn;
  turn.turns = 1;
  const io::Image once = io::move_pixels(image, turn);
  CHECK(once.width == 131);
  CHECK(once.height == 70);
  CHECK(pixel(once, 0, 0) == pixel(image, 69, 0));  // counter-clockwise: the upper right corner comes to the upper left
  CHECK(pixel(once, 130, 0) == pixel(image, 69, 130));
  CHECK(pixel(once, 5, 3) == pixel(image, 66, 5));
  io::Image around = image;
  for (int i = 0; i < 4; ++i) around = io::move_pixels(around, turn);
  CHECK(around.rgb == image.rgb);
  io::Augmentation twice = turn, thrice = turn;
  twice.turns = 2;
  thrice.turns = 3;
  CHECK(io::move_pixels(once, turn).rgb == io::move_pixels(image, twice).rgb);
  CHECK(io::move_pixels(io::move_pixels(image, twice), turn).rgb == io::move_pixels(image, thrice).rgb);
  io::Augmentation flip;
  flip.flip = true;
  const io::Image mirrored = io::move_pixels(image, flip);
  CHECK(pixel(mirrored, 0, 7) == pixel(image, 69, 7));
  CHECK(io::move_pixels(mirrored, flip).rgb == image.rgb);
  io::Augmentation both = turn;  // flipped first, then turned
  both.flip = true;
  CHECK(io::move_pixels(image, both).rgb == io::move_pixels(mirrored, turn).rgb);
  io::Augmentation shift;
  shift.shift_x = 3;
  shift.shift_y = 5;
  const io::Image shifted = io::move_pixels(image, shift);
  CHECK(shifted.width == 73);
  CHECK(shifted.height == 136);
  CHECK(pixel(shifted, 3, 5) == pixel(image, 0, 0));
  CHECK(pixel(shifted, 72, 135) == pixel(image, 69, 130));
  CHECK(pixel(shifted, 2, 60) == std::array<uint8_t, 3>{255, 255, 255});
  CHECK(pixel(shifted, 30, 4) == std::array<uint8_t, 3>{255, 255, 255});
}

TEST_CASE("colours change in the stains' directions and white stays white", "[cpu]") {
  io::Image image = blank(4, 1);
  const auto stained = [](double h, double e) {  // optical density of both stains
    const double hl = std::sqrt(0.65 * 0.65 + 0.70 * 0.70 + 0.29 * 0.29),
                 el = std::sqrt(0.07 * 0.07 + 0.99 * 0.99 + 0.11 * 0.11);
    std::array<uint8_t, 3> colour{};
    const double hv[] = {0.65, 0.70, 0.29}, ev[] = {0.07, 0.99, 0.11};
    for (size_t c = 0; c < 3; ++c)
      colour[c] = static_cast<uint8_t>(std::lround(255.0 * std::exp(-h * hv[c] / hl - e * ev[c] / el)));
    return colour;
  };
  paint(image, 1, 0, 1, 1, stained(0.8, 0.3));
  paint(image, 2, 0, 1, 1, stained(0.2, 0.6));
  io::Augmentation change;
  change.haematoxylin = 1.2;
  change.eosin = 0.9;
  io::Image changed = image;
  io::change_colours(changed, change);
  CHECK(pixel(changed, 0, 0) == std::array<uint8_t, 3>{255, 255, 255});
  for (const auto& [x, h, e] : {std::tuple{1, 0.8, 0.3}, std::tuple{2, 0.2, 0.6}}) {
    const auto expected = stained(1.2 * h, 0.9 * e), actual = pixel(changed, x, 0);
    for (size_t c = 0; c < 3; ++c) CHECK(std::abs(int{expected[c]} - int{actual[c]}) <= 1);
  }
  io::Augmentation dim;
  dim.brightness = 0.9;
  changed = image;
  io::change_colours(changed, dim);
  CHECK(pixel(changed, 0, 0)[0] == 230);
  CHECK(std::abs(pixel(changed, 1, 0)[1] - 0.9 * pixel(image, 1, 0)[1]) <= 1.0);
  changed = image;
  io::change_colours(changed, {});
  CHECK(changed.rgb == image.rgb);
}

TEST_CASE("draws depend on seed, epoch and sample, and cover what they should", "[cpu]") {
  const io::AugmentOptions options;
  const auto same = [](const io::Augmentation& a, const io::Augmentation& b) {
    return a.flip == b.flip && a.turns == b.turns && a.shift_x == b.shift_x && a.shift_y == b.shift_y &&
           a.haematoxylin == b.haematoxylin && a.eosin == b.eosin && a.brightness == b.brightness;
  };
  const io::Augmentation one = io::draw_augmentation(options, 64, 1, 2, 3);
  CHECK(same(one, io::draw_augmentation(options, 64, 1, 2, 3)));
  CHECK_FALSE(same(one, io::draw_augmentation(options, 64, 2, 2, 3)));
  CHECK_FALSE(same(one, io::draw_augmentation(options, 64, 1, 3, 3)));
  CHECK_FALSE(same(one, io::draw_augmentation(options, 64, 1, 2, 4)));
  int flips = 0, turns[4] = {}, drops = 0;
  int64_t least = 64, most = -1;
  for (int64_t i = 0; i < 4000; ++i) {
    const io::Augmentation draw = io::draw_augmentation(options, 64, 1, 0, i);
    flips += draw.flip ? 1 : 0;
    ++turns[draw.turns];
    least = std::min({least, draw.shift_x, draw.shift_y});
    most = std::max({most, draw.shift_x, draw.shift_y});
    CHECK(std::abs(draw.haematoxylin - 1.0) <= 0.05);
    CHECK(std::abs(draw.brightness - 1.0) <= 0.05);
    drops += io::draw_drop(0.3, 1, 0, 5, i) ? 1 : 0;
  }
  CHECK(std::abs(flips - 2000) < 200);
  for (const int count : turns) CHECK(std::abs(count - 1000) < 150);
  CHECK(least == 0);
  CHECK(most == 63);
  CHECK(std::abs(drops - 1200) < 150);
  CHECK_FALSE(io::draw_drop(0.0, 1, 0, 5, 1));
  CHECK(io::draw_drop(1.0, 1, 0, 5, 1));
  io::AugmentOptions none{false, false, false, 0.0, 0.0, 0.0};
  CHECK(io::draw_augmentation(none, 64, 1, 2, 3).identity());
}

TEST_CASE("a real section loses its background and keeps its tissue", "[data]") {
  io::SlideOptions options;
  options.slide_mpp = 2.0;
  options.mpp = 8.0;
  const io::SlideImage slide = io::read_slide(data_dir() + "/slides/C3L-00601-26_from-dzi_pyramid.tif", options);
  const io::WindowChoice choice = io::find_background(slide.image, io::tissue_mask(slide.image, slide.mpp), 64);
  CHECK_FALSE(choice.no_tissue);
  CHECK(choice.background_count > choice.grid.count() / 20);
  CHECK(choice.background_count < choice.grid.count() * 9 / 10);
  double light = 0.0, pixels = 0.0;
  for (size_t i = 0; i < choice.background.size(); ++i) {
    if (!choice.background[i]) continue;
    const int64_t top = static_cast<int64_t>(i) / choice.grid.cols * 64,
                  left = static_cast<int64_t>(i) % choice.grid.cols * 64;
    for (int64_t y = top; y < std::min(top + 64, slide.image.height); ++y) {
      for (int64_t x = left; x < std::min(left + 64, slide.image.width); ++x, ++pixels)
        light += pixel(slide.image, x, y)[1];
    }
  }
  CHECK(light / pixels > 220.0);  // what is left out is bright
}

}  // namespace pm::test
