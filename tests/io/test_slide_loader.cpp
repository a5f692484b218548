#include <fmt/format.h>

#include <cmath>
#include <filesystem>
#include <map>
#include <numeric>
#include <thread>

#include "engine/core/error.h"
#include "io/data/file.h"
#include "io/data/order.h"
#include "io/data/slide_loader.h"
#include "io/slide/slide.h"
#include "io/slide/tiff_writer.h"
#include "tests/io/pictures.h"
#include "tests/support/test.h"

namespace pm::test {
namespace fs = std::filesystem;
namespace {

// Slides of different sizes at 4 um per pixel: a coloured block on white.
class Slides {
 public:
  explicit Slides(int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
      io::Image image{120 + 37 * (i % 5), 90 + 23 * (i % 7), {}};
      image.rgb.assign(static_cast<size_t>(image.width * image.height * 3), 255);
      const io::Image tissue = picture(50, 40, static_cast<uint64_t>(i) + 1);
      for (int64_t y = 0; y < 40; ++y) {
        for (int64_t x = 0; x < 50; ++x) {
          uint8_t* to = image.rgb.data() + ((y + 30) * image.width + x + 40) * 3;
          to[0] = static_cast<uint8_t>(150 + tissue.rgb[static_cast<size_t>((y * 50 + x) * 3)] / 4);
          to[1] = static_cast<uint8_t>(tissue.rgb[static_cast<size_t>((y * 50 + x) * 3 + 1)] / 2);
          to[2] = 160;
        }
      }
      io::SlideRow row;
      row.slide_id = row.case_id = fmt::format("s{}", i);
      row.path = fmt::format("{}/s{}.tif", dir_.path(), i);
      io::write_pyramid_tiff(row.path, image, 4.0, {64, io::TiffCompression::deflate, 90});
      rows.push_back(row);
    }
  }
  const std::string& folder() const { return dir_.path(); }
  std::vector<int64_t> all() const {
    std::vector<int64_t> order(rows.size());
    std::iota(order.begin(), order.end(), 0);
    return order;
  }

  std::vector<io::SlideRow> rows;

 private:
  TempDir dir_;
};

io::LoaderOptions options_with(int64_t workers) {
  io::LoaderOptions options;
  options.workers = workers;
  options.region_size = 32;
  options.keep_background = false;
  options.seed = 11;
  return options;
}

std::vector<io::SlideSample> take_all(io::SlideLoader& loader) {
  std::vector<io::SlideSample> samples;
  while (auto sample = loader.next()) samples.push_back(std::move(*sample));
  return samples;
}

void check_same(const io::SlideSample& a, const io::SlideSample& b) {
  CHECK(a.slide == b.slide);
  CHECK(a.epoch == b.epoch);
  CHECK(a.index == b.index);
  CHECK(a.error == b.error);
  CHECK(a.image.width == b.image.width);
  CHECK(a.image.rgb == b.image.rgb);
  CHECK(a.left_out == b.left_out);
  CHECK(a.kept == b.kept);
}

std::vector<std::string> cache_files(const std::string& folder) {
  std::vector<std::string> files;
  for (const auto& entry : fs::directory_iterator(folder)) files.push_back(entry.path().string());
  return files;
}

}  // namespace

TEST_CASE("samples come in order and do not depend on the number of workers", "[cpu]") {
  const Slides slides(12);
  const std::vector<int64_t> order = io::shuffled(slides.all(), 3, 0);
  std::vector<io::SlideSample> reference;
  for (const int64_t workers : {1, 2, 7}) {
    io::SlideLoader loader(slides.rows, options_with(workers));
    loader.add({order, 4, 0, true});
    loader.add({slides.all(), 5, 0, false});
    const std::vector<io::SlideSample> samples = take_all(loader);
    REQUIRE(samples.size() == 24);
    for (size_t i = 0; i < 12; ++i) {
      CHECK(samples[i].slide == order[i]);
      CHECK(samples[i].index == static_cast<int64_t>(i));
      CHECK(samples[i].epoch == 4);
      CHECK(samples[i].error.empty());
    }
    CHECK(loader.stats().read == 24);
    if (reference.empty()) reference = samples;
    for (size_t i = 0; i < samples.size(); ++i) check_same(samples[i], reference[i]);
  }
  // Without augmentation and with background a sample is what read_slide gives.
  io::LoaderOptions plain = options_with(2);
  plain.keep_background = true;
  io::SlideLoader loader(slides.rows, plain);
  loader.add({slides.all(), 0, 0, false});
  for (const io::SlideSample& sample : take_all(loader)) {
    const io::SlideImage slide = io::read_slide(slides.rows[static_cast<size_t>(sample.slide)].path);
    CHECK(sample.image.rgb == slide.image.rgb);
    CHECK(sample.mpp == slide.mpp);
    CHECK(sample.tiles == slide.tiles);
    CHECK(sample.windows == sample.grid.count());
    CHECK(sample.left_out == 0);
  }
}

TEST_CASE("background windows are left out and counted", "[cpu]") {
  const Slides slides(3);
  io::LoaderOptions options = options_with(1);
  io::SlideLoader loader(slides.rows, options);
  loader.add({{0}, 0, 0, false});
  const auto sample = loader.next();
  REQUIRE(sample.has_value());
  CHECK(sample->windows == 12);  // 120 x 90 pixels
  CHECK(sample->left_out == sample->background);
  CHECK(sample->background >= 6);
  CHECK(sample->left_out + static_cast<int64_t>(sample->kept.size()) == 12);
  CHECK(sample->image.height == 32);
  CHECK(sample->image.width == 32 * static_cast<int64_t>(sample->kept.size()));
  // Kept in general, dropped at random in training.
  options.keep_background = true;
  options.augment = {false, false, false, 0.0, 0.0, 0.5};
  io::SlideLoader random(slides.rows, options);
  random.add({{0}, 0, 0, false});
  CHECK(random.next()->left_out == 0);
  int64_t dropped = 0;
  for (int64_t epoch = 0; epoch < 20; ++epoch) random.add({{0}, epoch, 0, true});
  for (const io::SlideSample& one : take_all(random)) {
    CHECK(one.background == sample->background);
    dropped += one.left_out;
  }
  CHECK(std::abs(static_cast<double>(dropped) / 20.0 - 0.5 * static_cast<double>(sample->background)) < 1.5);
}

TEST_CASE("a pass goes on from a saved position with the same samples", "[cpu]") {
  const Slides slides(9);
  const io::LoaderOptions options = options_with(3);
  const std::vector<int64_t> order = io::shuffled(slides.all(), options.seed, 2);
  io::SlideLoader whole(slides.rows, options);
  whole.add({order, 2, 0, true});
  CHECK(whole.position() == io::LoaderPosition{2, 0});
  const std::vector<io::SlideSample> samples = take_all(whole);
  CHECK(whole.position() == io::LoaderPosition{2, 9});
  for (const int64_t cut : {0, 1, 5, 9}) {
    io::LoaderPosition position{2, 0};
    if (cut > 0) {
      io::SlideLoader first(slides.rows, options);
      first.add({order, 2, 0, true});
      for (int64_t i = 0; i < cut; ++i) first.next();
      position = first.position();
    }
    CHECK(position == io::LoaderPosition{2, cut});
    io::SlideLoader second(slides.rows, options);
    second.add({order, position.epoch, position.index, true});
    const std::vector<io::SlideSample> rest = take_all(second);
    REQUIRE(rest.size() == static_cast<size_t>(9 - cut));
    for (size_t i = 0; i < rest.size(); ++i) check_same(rest[i], samples[i + static_cast<size_t>(cut)]);
  }
}

TEST_CASE("a slide that cannot be read costs its own sample alone", "[cpu]") {
  Slides slides(50);
  write_bytes(slides.rows[7].path, "not a slide");
  fs::remove(slides.rows[8].path);
  write_bytes(slides.rows[49].path, "");
  io::LoaderOptions options = options_with(4);
  options.cache = slides.folder() + "/cache";
  io::SlideLoader loader(slides.rows, options);
  loader.add({slides.all(), 0, 0, true});
  const std::vector<io::SlideSample> samples = take_all(loader);
  REQUIRE(samples.size() == 50);
  for (const io::SlideSample& sample : samples) {
    const bool bad = sample.slide == 7 || sample.slide == 8 || sample.slide == 49;
    CHECK(sample.error.empty() != bad);
    CHECK(sample.image.rgb.empty() == bad);
    if (bad) CHECK_THAT(sample.error, ContainsSubstring(slides.rows[static_cast<size_t>(sample.slide)].path));
  }
  CHECK(loader.stats().errors == 3);
  CHECK(loader.stats().read == 47);
}

TEST_CASE("memory stays below its limit and no order of sizes blocks", "[cpu]") {
  const Slides slides(30);
  io::LoaderOptions options = options_with(6);
  io::SlideLoader unlimited(slides.rows, options);
  unlimited.add({slides.all(), 0, 0, true});
  const std::vector<io::SlideSample> reference = take_all(unlimited);
  io::SlideLoader one(slides.rows, options);
  int64_t need = 0;  // of the largest
  for (const int64_t slide : slides.all()) {
    one.add({{slide}, 0, 0, true});
    one.next();
  }
  need = one.stats().peak_bytes;
  CHECK(need > 0);
  for (const int64_t limit : {need, need + need / 3, 3 * need}) {
    options.max_bytes = limit;
    io::SlideLoader loader(slides.rows, options);
    loader.add({slides.all(), 0, 0, true});
    const std::vector<io::SlideSample> samples = take_all(loader);
    CHECK(loader.stats().peak_bytes <= limit);
    REQUIRE(samples.size() == 30);
    for (size_t i = 0; i < 30; ++i) check_same(samples[i], reference[i]);
  }
  CHECK(unlimited.stats().peak_bytes > need);  // it did read ahead
  options.max_bytes = 1000;
  io::SlideLoader tiny(slides.rows, options);
  tiny.add({{0, 1}, 0, 0, false});
  const std::vector<io::SlideSample> refused = take_all(tiny);
  REQUIRE(refused.size() == 2);
  CHECK_THAT(refused[1].error, ContainsSubstring("raise its memory limit") && ContainsSubstring("s1.tif"));
}

TEST_CASE("the cache gives the same samples and heals", "[cpu]") {
  const Slides slides(4);
  io::LoaderOptions options = options_with(2);
  const auto run = [&](io::LoaderStats& stats) {
    io::SlideLoader loader(slides.rows, options);
    loader.add({slides.all(), 1, 0, true});
    std::vector<io::SlideSample> samples = take_all(loader);
    stats = loader.stats();
    return samples;
  };
  io::LoaderStats stats;
  const std::vector<io::SlideSample> reference = run(stats);
  const auto run_and_compare = [&] {
    const std::vector<io::SlideSample> samples = run(stats);
    REQUIRE(samples.size() == reference.size());
    for (size_t i = 0; i < samples.size(); ++i) check_same(samples[i], reference[i]);
  };
  options.cache = slides.folder() + "/a/cache";
  run_and_compare();
  CHECK(stats.read == 4);
  CHECK(cache_files(options.cache).size() == 4);
  run_and_compare();
  CHECK(stats.read == 0);
  CHECK(stats.from_cache == 4);

  // Every way to damage a file: any byte of the front, header or pixels, a cut anywhere, bytes too many, nothing at all.
  const std::string file = cache_files(options.cache)[0], sound = io::read_file(file);
  std::vector<std::string> broken = {"", sound.substr(0, 5), sound.substr(0, 40), sound.substr(0, sound.size() - 1),
                                     sound + "x"};
  for (size_t at : {size_t{0}, size_t{8}, size_t{15}, size_t{17}, size_t{24}, size_t{40}, size_t{200}, sound.size() / 2,
                    sound.size() - 1}) {
    broken.push_back(sound);
    broken.back()[at] = static_cast<char>(broken.back()[at] ^ 1);
  }
  for (const std::string& bytes : broken) {
    CAPTURE(bytes.size());
    write_bytes(file, bytes);
    run_and_compare();
    CHECK(stats.cache_rebuilt == 1);
    CHECK(stats.from_cache == 3);
    CHECK(io::read_file(file) == sound);
  }
  // Other settings and changed slides have files of their own.
  options.mpp = 8.0;
  run(stats);
  CHECK(stats.from_cache == 0);
  CHECK(cache_files(options.cache).size() == 8);
  options.mpp = 4.0;
  fs::last_write_time(slides.rows[2].path, fs::last_write_time(slides.rows[2].path) + std::chrono::seconds(5));
  run_and_compare();
  CHECK(stats.from_cache == 3);
}

TEST_CASE("a cache that cannot be written costs speed alone", "[cpu]") {
  const Slides slides(3);
  io::LoaderOptions options = options_with(1);
  options.cache = slides.folder() + "/cache";
  io::SlideLoader loader(slides.rows, options);
  fs::remove_all(options.cache);
  write_bytes(options.cache, "in the way");
  loader.add({slides.all(), 0, 0, false});
  for (const io::SlideSample& sample : take_all(loader)) CHECK(sample.error.empty());
  CHECK_FALSE(loader.stats().cache_error.empty());
  CHECK_THROWS_AS(io::SlideLoader(slides.rows, options), IoError);
}

TEST_CASE("waiting ends when it is told to", "[cpu]") {
  const Slides slides(20);
  {
    io::SlideLoader loader(slides.rows, options_with(3));
    loader.add({slides.all(), 0, 0, true});
    loader.next();
    std::stop_source stop;
    stop.request_stop();
    CHECK_FALSE(loader.next(stop.get_token()).has_value());
    CHECK(loader.position() == io::LoaderPosition{0, 1});  // nothing was lost by that
    CHECK(loader.next()->index == 1);
    loader.clear();
    CHECK_FALSE(loader.next().has_value());
    loader.add({{4, 3}, 9, 1, true});
    CHECK(loader.position() == io::LoaderPosition{9, 1});
    CHECK(loader.next()->slide == 3);
    loader.add({slides.all(), 10, 0, true});
    std::jthread other([&] { loader.stop(); });
    while (loader.next()) {
    }
    CHECK_FALSE(loader.next().has_value());
  }
  for (int i = 0; i < 10; ++i) {  // destroyed at any moment
    io::SlideLoader loader(slides.rows, options_with(4));
    loader.add({slides.all(), 0, 0, true});
    for (int k = 0; k < i; ++k) loader.next();
  }
  std::stop_source stop;
  stop.request_stop();
  io::SlideOptions options;
  options.stop = stop.get_token();
  CHECK_THROWS_AS(io::read_slide(slides.rows[0].path, options), io::Cancelled);
}

TEST_CASE("loader options and orders out of range are refused", "[cpu]") {
  const Slides slides(2);
  const auto refuse = [&](auto&& change) {
    io::LoaderOptions options = options_with(1);
    change(options);
    CHECK_THROWS_AS(io::SlideLoader(slides.rows, options), ConfigError);
  };
  refuse([](io::LoaderOptions& o) { o.workers = 0; });
  refuse([](io::LoaderOptions& o) { o.max_bytes = 0; });
  refuse([](io::LoaderOptions& o) { o.region_size = 0; });  // beside keep_background = false
  refuse([](io::LoaderOptions& o) { o.augment.stain = 1.0; });
  refuse([](io::LoaderOptions& o) { o.augment.drop_background = 1.5; });
  io::SlideLoader loader(slides.rows, options_with(1));
  CHECK_THROWS_AS(loader.add({{2}, 0, 0, false}), ConfigError);
  CHECK_THROWS_AS(loader.add({{0}, 0, 2, false}), ConfigError);
  loader.add({{}, 0, 0, false});
  CHECK_FALSE(loader.next().has_value());
}

TEST_CASE("orders are permutations that change with the epoch", "[cpu]") {
  std::vector<int64_t> members = {4, 8, 15, 16, 23, 42};
  const std::vector<int64_t> first = io::shuffled(members, 1, 0);
  CHECK(first == io::shuffled(members, 1, 0));
  CHECK(first != io::shuffled(members, 1, 1));
  CHECK(first != io::shuffled(members, 2, 0));
  std::vector<int64_t> sorted = first;
  std::sort(sorted.begin(), sorted.end());
  CHECK(sorted == members);
  // Each place is reached from each: the mean over many epochs is flat.
  std::vector<double> sums(6);
  for (int64_t epoch = 0; epoch < 6000; ++epoch) {
    const std::vector<int64_t> order = io::shuffled({0, 1, 2, 3, 4, 5}, 1, epoch);
    for (size_t i = 0; i < 6; ++i) sums[i] += static_cast<double>(order[i]);
  }
  for (const double sum : sums) CHECK(sum / 6000.0 == Approx(2.5).margin(0.1));
}

TEST_CASE("balanced orders show every class equally often and leave nobody out", "[cpu]") {
  const std::vector<int64_t> members = {3, 4, 5, 6, 7, 8, 9, 20, 21, 30}, classes = {0, 0, 0, 0, 0, 0, 0, 1, 1, 4};
  CHECK(io::balanced(members, classes, 1.0, 1, 0) == io::balanced(members, classes, 1.0, 1, 0));
  CHECK(io::balanced(members, classes, 1.0, 1, 0) != io::balanced(members, classes, 1.0, 1, 1));
  CHECK(io::balanced(members, classes, 1.0, 1, 0) != io::balanced(members, classes, 1.0, 2, 0));
  std::map<int64_t, int64_t> seen;
  for (int64_t epoch = 0; epoch < 7; ++epoch) {  // 4, 3 and 3 slides of the classes an epoch
    const std::vector<int64_t> order = io::balanced(members, classes, 1.0, 1, epoch);
    REQUIRE(order.size() == 10);
    CHECK(std::count_if(order.begin(), order.end(), [](int64_t slide) { return slide < 10; }) == 4);
    CHECK(std::count(order.begin(), order.end(), 30) == 3);
    for (const int64_t slide : order) ++seen[slide];
  }
  for (const int64_t slide : {3, 4, 5, 6, 7, 8, 9}) CHECK(seen[slide] == 4);
  CHECK(seen[20] + seen[21] == 21);
  CHECK(std::abs(seen[20] - seen[21]) == 1);
  CHECK_THROWS_AS(io::balanced(members, {0, 1}, 1.0, 1, 0), ConfigError);
}

TEST_CASE("balance goes as far as it is asked to", "[cpu]") {
  std::vector<int64_t> members(146), classes(146);  // classes of 100, 36, 9 and 1: square roots 10, 6, 3 and 1
  std::iota(members.begin(), members.end(), 0);
  for (size_t i = 0; i < classes.size(); ++i) classes[i] = i < 100 ? 0 : i < 136 ? 1 : i < 145 ? 2 : 3;
  const auto counts = [&](double strength) {
    std::vector<int64_t> seen(4);
    const std::vector<int64_t> order = io::balanced(members, classes, strength, 1, 3);
    CHECK(order.size() == members.size());
    for (const int64_t member : order) ++seen[static_cast<size_t>(classes[static_cast<size_t>(member)])];
    return seen;
  };
  CHECK(counts(0.0) == std::vector<int64_t>{100, 36, 9, 1});
  CHECK(counts(0.5) == std::vector<int64_t>{73, 44, 22, 7});  // 146 / 20 of each root
  CHECK(counts(1.0) == std::vector<int64_t>{37, 37, 36, 36});
  for (const double strength : {-0.1, 1.1, std::nan("")}) {
    CAPTURE(strength);
    CHECK_THROWS_AS(io::balanced(members, classes, strength, 1, 0), ConfigError);
  }
}

TEST_CASE("real slides of several vendors come through the loader", "[data]") {
  std::vector<io::SlideRow> rows;
  for (const char* name : {"CMU-1-Small-Region.svs", "tcga-cr-7395-01a-01-ts1.svs", "C3L-00601-26_from-dzi_pyramid.tif",
                           "test3-DAPI-2-387.ndpi"}) {
    rows.emplace_back().path = data_dir() + "/slides/" + name;
    rows.back().mpp = 0.5;
  }
  rows.emplace_back().path = data_dir() + "/slides_bad/unreadable.svs";
  rows.back().mpp = 0.5;
  io::LoaderOptions options = options_with(2);
  options.region_size = 64;
  io::SlideLoader loader(rows, options);
  loader.add({{0, 1, 2, 3, 4}, 0, 0, true});
  const std::vector<io::SlideSample> samples = take_all(loader);
  REQUIRE(samples.size() == 5);
  for (size_t i = 0; i < 4; ++i) {
    CAPTURE(rows[i].path);
    CHECK(samples[i].error == "");
    CHECK(samples[i].image.height % 64 == (samples[i].left_out > 0 ? 0 : samples[i].image.height % 64));
  }
  CHECK(samples[2].left_out > 0);  // a section on a white slide
  CHECK_THAT(samples[4].error, ContainsSubstring("unreadable.svs"));
}

}  // namespace pm::test
