#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <numeric>

#include "engine/core/error.h"
#include "io/data/image_loader.h"
#include "io/data/order.h"
#include "tests/io/pictures.h"
#include "tests/support/test.h"

namespace pm::test {
namespace fs = std::filesystem;
namespace {

// Pictures of different sizes, PNG and JPEG; labels 0 to 4 in turn.
class Pictures {
 public:
  explicit Pictures(int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
      const io::Image image = picture(30 + 7 * (i % 4), 26 + 5 * (i % 3), static_cast<uint64_t>(i) + 1);
      images.push_back({fmt::format("{}/{}.{}", dir_.path(), i, i % 2 == 0 ? "png" : "jpg"), i % 5});
      if (i % 2 == 0) {
        io::write_png(images.back().path, image);
      } else {
        write_bytes(images.back().path,
                    jpeg_bytes(static_cast<int>(image.width), static_cast<int>(image.height), 3, image.rgb));
      }
    }
  }
  std::vector<int64_t> all() const {
    std::vector<int64_t> order(images.size());
    std::iota(order.begin(), order.end(), 0);
    return order;
  }
  void damage(int64_t i) const { write_bytes(images[static_cast<size_t>(i)].path, "no picture"); }

  std::vector<io::LabelledImage> images;

 private:
  TempDir dir_;
};

io::ImageLoaderOptions options_with(int64_t workers, int64_t batch = 4) {
  io::ImageLoaderOptions options;
  options.batch = batch;
  options.size = 20;
  options.seed = 11;
  options.workers = workers;
  options.augment.erase = 0.5;
  return options;
}

std::vector<io::ImageBatch> take_all(io::ImageLoader& loader) {
  std::vector<io::ImageBatch> batches;
  while (auto batch = loader.next()) batches.push_back(std::move(*batch));
  return batches;
}

std::vector<io::ImageBatch> batches_of_order(const Pictures& pictures, const io::ImageLoaderOptions& options,
                                             const io::ImageOrder& order) {
  io::ImageLoader loader(pictures.images, options);
  loader.add(order);
  return take_all(loader);
}

void check_same(const io::ImageBatch& a, const io::ImageBatch& b) {
  CHECK(a.epoch == b.epoch);
  CHECK(a.index == b.index);
  CHECK(a.images == b.images);
  CHECK(a.rgb == b.rgb);
  CHECK(a.labels == b.labels);
  CHECK(a.partners == b.partners);
  CHECK(a.lambda == b.lambda);
  REQUIRE(a.bad.size() == b.bad.size());
  for (size_t i = 0; i < a.bad.size(); ++i) {
    CHECK(a.bad[i].path == b.bad[i].path);
    CHECK(a.bad[i].reason == b.bad[i].reason);
  }
}

std::vector<uint8_t> pixels(const io::ImageBatch& batch, int64_t i, int64_t size = 20) {
  const auto begin = batch.rgb.begin() + i * size * size * 3;
  return {begin, begin + size * size * 3};
}

// What one picture gives before it is mixed.
std::vector<uint8_t> expected(const Pictures& pictures, const io::ImageLoaderOptions& options, int64_t epoch, int64_t i,
                              bool augment) {
  const io::Image image = io::read_image(pictures.images[static_cast<size_t>(i)].path);
  if (!augment) return io::centre_crop(image, options.size).rgb;
  const io::CropBox box = io::draw_crop(options.augment, image.width, image.height, options.seed, epoch, i);
  io::Image result = io::resample(image, box, options.size);
  io::erase(result, options.augment, options.seed, epoch, i);
  return result.rgb;
}

}  // namespace

TEST_CASE("batches hold the pictures of their order", "[cpu]") {
  const Pictures pictures(11);
  io::ImageLoaderOptions options = options_with(2);
  options.augment.mixup = 0.0;
  const bool augment = GENERATE(false, true);
  const std::vector<int64_t> order = io::shuffled(pictures.all(), 1, 3);
  const std::vector<io::ImageBatch> batches = batches_of_order(pictures, options, {order, 3, 0, augment, false});
  REQUIRE(batches.size() == 3);
  for (int64_t b = 0; b < 3; ++b) {
    const io::ImageBatch& batch = batches[static_cast<size_t>(b)];
    CHECK(batch.epoch == 3);
    CHECK(batch.index == b);
    CHECK(batch.images == (b < 2 ? 4 : 3));
    CHECK(batch.lambda == 1.0);
    CHECK(batch.partners == batch.labels);
    CHECK(batch.bad.empty());
    REQUIRE(batch.rgb.size() == 4 * 20 * 20 * 3);
    for (int64_t i = 0; i < 4; ++i) {
      // The last batch repeats its first image.
      const int64_t image = order[static_cast<size_t>(i < batch.images ? 4 * b + i : 4 * b)];
      CHECK(pixels(batch, i) == expected(pictures, options, 3, image, augment));
      CHECK(batch.labels[static_cast<size_t>(i)] == pictures.images[static_cast<size_t>(image)].label);
    }
  }
}

TEST_CASE("mixed batches are shares of two pictures and say which", "[cpu]") {
  const Pictures pictures(16);
  const int64_t batch_size = GENERATE(4, 5);
  io::ImageLoaderOptions options = options_with(3, batch_size);
  options.augment.mixup = 1.0;
  const std::vector<io::ImageBatch> batches = batches_of_order(pictures, options, {pictures.all(), 2, 0, true, true});
  REQUIRE(batches.size() == static_cast<size_t>(16 / batch_size));
  for (const io::ImageBatch& batch : batches) {
    CHECK(batch.lambda == io::draw_mixup(1.0, options.seed, 2, batch.index));
    CHECK(batch.lambda < 1.0);
    for (int64_t i = 0; i < batch_size; ++i) {
      const int64_t partner = batch_size - 1 - i, first = batch.index * batch_size;
      CHECK(batch.labels[static_cast<size_t>(i)] == (first + i) % 5);
      CHECK(batch.partners[static_cast<size_t>(i)] == (first + partner) % 5);
      const std::vector<uint8_t> own = expected(pictures, options, 2, first + i, true),
                                 other = expected(pictures, options, 2, first + partner, true);
      const std::vector<uint8_t> mixed = pixels(batch, i);
      double worst = 0.0;
      for (size_t k = 0; k < own.size(); ++k)
        worst = std::max(worst, std::abs(batch.lambda * own[k] + (1.0 - batch.lambda) * other[k] - mixed[k]));
      CHECK(worst <= 0.5 + 1e-3);  // rounded
    }
  }
  // Orders that are not augmented are not mixed.
  for (const io::ImageBatch& batch : batches_of_order(pictures, options, {pictures.all(), 2, 0, false, true})) {
    CHECK(batch.lambda == 1.0);
    CHECK(pixels(batch, 0) == expected(pictures, options, 2, batch.index * batch_size, false));
  }
}

TEST_CASE("batches do not depend on the number of workers or how far they read ahead", "[cpu]") {
  const Pictures pictures(70);
  pictures.damage(13);
  const int64_t batch = GENERATE(8, 33);
  std::vector<io::ImageBatch> reference;
  for (const int64_t workers : {1, 4, 7}) {
    io::ImageLoaderOptions options = options_with(workers, batch);
    options.ahead = workers == 7 ? 1 : 3;
    io::ImageLoader loader(pictures.images, options);
    for (int64_t epoch = 0; epoch < 2; ++epoch)
      loader.add({io::shuffled(pictures.all(), 3, epoch), epoch, 0, true, false});
    loader.add({pictures.all(), 0, 0, false, false});
    const std::vector<io::ImageBatch> batches = take_all(loader);
    REQUIRE(batches.size() == static_cast<size_t>(3 * io::batches_of(70, batch, false)));
    if (reference.empty()) reference = batches;
    for (size_t i = 0; i < batches.size(); ++i) check_same(batches[i], reference[i]);
  }
  CHECK(reference[0].rgb != reference[reference.size() / 3].rgb);
}

TEST_CASE("an epoch goes on from a batch with the same bytes", "[cpu]") {
  const Pictures pictures(22);
  const io::ImageLoaderOptions options = options_with(3);
  const io::ImageOrder order{io::shuffled(pictures.all(), 1, 6), 6, 0, true, false};
  const std::vector<io::ImageBatch> whole = batches_of_order(pictures, options, order);
  REQUIRE(whole.size() == 6);
  for (const int64_t first : {1, 4, 6}) {
    io::ImageOrder rest = order;
    rest.first = first;
    const std::vector<io::ImageBatch> batches = batches_of_order(pictures, options, rest);
    REQUIRE(batches.size() == static_cast<size_t>(6 - first));
    for (size_t i = 0; i < batches.size(); ++i) check_same(batches[i], whole[i + static_cast<size_t>(first)]);
  }
}

TEST_CASE("a last batch that is not full is filled up or left out", "[cpu]") {
  const Pictures pictures(9);
  for (const int64_t workers : {1, 3}) {
    io::ImageOrder order{pictures.all(), 0, 0, false, false};
    const std::vector<io::ImageBatch> batches = batches_of_order(pictures, options_with(workers), order);
    REQUIRE(batches.size() == 3);
    CHECK(batches[2].images == 1);
    CHECK(batches[2].labels == std::vector<int64_t>{3, 3, 3, 3});
    for (int64_t i = 1; i < 4; ++i) CHECK(pixels(batches[2], i) == pixels(batches[2], 0));
    order.drop_last = true;
    CHECK(batches_of_order(pictures, options_with(workers), order).size() == 2);
    CHECK(batches_of_order(pictures, options_with(workers, 32), order).empty());
    order.drop_last = false;
    CHECK(batches_of_order(pictures, options_with(workers, 32), order).at(0).images == 9);
  }
  CHECK(io::batches_of(9, 4, false) == 3);
  CHECK(io::batches_of(9, 4, true) == 2);
  CHECK(io::batches_of(8, 4, false) == 2);
  CHECK(io::batches_of(0, 4, false) == 0);
  CHECK_THROWS_AS(io::batches_of(9, 0, false), ConfigError);
}

TEST_CASE("the next picture stands in for one that cannot be decoded", "[cpu]") {
  const Pictures pictures(10);
  pictures.damage(1);
  pictures.damage(2);
  pictures.damage(3);
  pictures.damage(8);
  fs::remove(pictures.images[9].path);
  const std::vector<int64_t> stands = {0, 4, 4, 4, 4, 5,
                                       6, 7, 0, 0, 0, 0};  // the last two repeat the first of their batch
  for (const int64_t workers : {1, 4}) {
    const io::ImageLoaderOptions options = options_with(workers);
    const std::vector<io::ImageBatch> batches =
        batches_of_order(pictures, options, {pictures.all(), 0, 0, false, false});
    REQUIRE(batches.size() == 3);
    for (int64_t i = 0; i < 12; ++i) {
      CAPTURE(i);
      const io::ImageBatch& batch = batches[static_cast<size_t>(i / 4)];
      const int64_t image = stands[static_cast<size_t>(i)];
      CHECK(pixels(batch, i % 4) == expected(pictures, options, 0, image, false));
      CHECK(batch.labels[static_cast<size_t>(i % 4)] == image % 5);
    }
    REQUIRE(batches[0].bad.size() == 3);
    for (size_t i = 0; i < 3; ++i) {
      CHECK(batches[0].bad[i].path == pictures.images[i + 1].path);
      CHECK(batches[0].bad[i].reason == "is neither PNG nor JPEG");
    }
    CHECK(batches[1].bad.empty());
    REQUIRE(batches[2].bad.size() == 2);
    CHECK(batches[2].bad[0].path == pictures.images[8].path);
    CHECK(batches[2].bad[1].path == pictures.images[9].path);
    CHECK(batches[2].bad[1].reason == "no such file");
  }
}

TEST_CASE("an order without a picture that can be decoded is an error", "[cpu]") {
  const Pictures pictures(40);
  for (int64_t i = 0; i < 30; ++i) pictures.damage(i);
  const std::vector<int64_t> all = pictures.all(), damaged(all.begin(), all.begin() + 30),
                             sound(all.begin() + 30, all.end());
  io::ImageLoader loader(pictures.images, options_with(4, 16));
  loader.add({damaged, 0, 0, true, false});
  loader.add({sound, 1, 0, true, false});
  for (int i = 0; i < 2; ++i) {
    const std::string message = error_message([&] { loader.next(); });
    CHECK_THAT(message, ContainsSubstring("none of the 30 images can be decoded") &&
                            ContainsSubstring(fs::path(pictures.images[0].path).parent_path().string()) &&
                            ContainsSubstring("is neither PNG nor JPEG"));
  }
  const auto batch = loader.next();
  REQUIRE(batch.has_value());
  CHECK(batch->epoch == 1);
  CHECK(batch->images == 10);
  CHECK_FALSE(loader.next().has_value());
}

TEST_CASE("an image loader may be destroyed at any moment", "[cpu]") {
  const Pictures pictures(60);
  for (int i = 0; i < 12; ++i) {
    io::ImageLoaderOptions options = options_with(4, 8);
    options.size = i % 2 == 0 ? 20 : 200;
    io::ImageLoader loader(pictures.images, options);
    for (int64_t epoch = 0; epoch < 20; ++epoch) loader.add({pictures.all(), epoch, 0, true, false});
    for (int k = 0; k < i; ++k) REQUIRE(loader.next().has_value());
  }
  io::ImageLoader idle(pictures.images, options_with(4));
  CHECK_FALSE(idle.next().has_value());
  idle.add({{}, 0, 0, true, false});
  CHECK_FALSE(idle.next().has_value());
}

TEST_CASE("image loader options and orders out of range are refused", "[cpu]") {
  const Pictures pictures(2);
  const auto refuse = [&](auto&& change) {
    io::ImageLoaderOptions options = options_with(1);
    change(options);
    CHECK_THROWS_AS(io::ImageLoader(pictures.images, options), ConfigError);
  };
  refuse([](io::ImageLoaderOptions& o) { o.batch = 0; });
  refuse([](io::ImageLoaderOptions& o) { o.size = 0; });
  refuse([](io::ImageLoaderOptions& o) { o.workers = 0; });
  refuse([](io::ImageLoaderOptions& o) { o.ahead = 0; });
  refuse([](io::ImageLoaderOptions& o) { o.augment.min_area = 0.0; });
  refuse([](io::ImageLoaderOptions& o) { o.augment.min_area = std::nan(""); });
  refuse([](io::ImageLoaderOptions& o) { o.augment.min_ratio = 2.0; });
  refuse([](io::ImageLoaderOptions& o) { o.augment.erase = 1.5; });
  refuse([](io::ImageLoaderOptions& o) { o.augment.mixup = -1.0; });
  io::ImageLoader loader(pictures.images, options_with(1));
  CHECK_THROWS_AS(loader.add({{2}, 0, 0, false, false}), ConfigError);
  CHECK_THROWS_AS(loader.add({{-1}, 0, 0, false, false}), ConfigError);
  CHECK_THROWS_AS(loader.add({{0}, 0, 2, false, false}), ConfigError);
  CHECK_THROWS_AS(loader.add({{0}, 0, 1, false, true}), ConfigError);
}

}  // namespace pm::test
