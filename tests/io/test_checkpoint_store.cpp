#include <filesystem>
#include <fstream>
#include <sstream>

#include "io/checkpoint/checkpoint_store.h"
#include "io/data/atomic_file.h"
#include "io/data/line_log.h"
#include "tests/io/failing_files.h"
#include "tests/support/test.h"

namespace pm::test {
namespace {

namespace fs = std::filesystem;
using io::CheckpointStore;
using Steps = std::vector<int64_t>;

std::string text_of(const std::string& path) {
  std::ifstream file(path);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

std::string content(int64_t step) { return std::string(100, 'a') + std::to_string(step); }

void save(CheckpointStore& store, FailingFiles& ops, int64_t step, int64_t keep = 2) {
  store.save(step, keep, [&](const std::string& folder) {
    io::write_file_atomically(folder + "/one", content(step), ops);
    io::write_file_atomically(folder + "/two", content(step) + "!", ops);
  });
}

void check_whole(const CheckpointStore& store) {
  for (const int64_t step : store.steps()) {
    CAPTURE(step);
    CHECK(text_of(store.path(step) + "/one") == content(step));
    CHECK(text_of(store.path(step) + "/two") == content(step) + "!");
    CHECK(std::distance(fs::directory_iterator(store.path(step)), fs::directory_iterator()) == 2);
  }
}

// Two checkpoints saved, the older one the best.
void prepare(const std::string& folder) {
  FailingFiles files;
  CheckpointStore store(folder, files);
  save(store, files, 10);
  store.mark_best(10);
  save(store, files, 20);
}

int64_t calls_of_a_save(const std::string& folder) {
  prepare(folder);
  FailingFiles files;
  CheckpointStore store(folder, files);
  save(store, files, 30, 1);
  store.mark_best(30);
  return static_cast<int64_t>(files.calls().size());
}

}  // namespace

TEST_CASE("checkpoints are kept by number, and the best one", "[cpu]") {
  const TempDir dir;
  FailingFiles files;
  CheckpointStore store(dir.path() + "/checkpoints", files);
  CHECK(store.steps().empty());
  for (const int64_t step : {1, 2, 3}) save(store, files, step, 2);
  CHECK(store.steps() == Steps{2, 3});
  store.mark_best(2);
  for (const int64_t step : {10, 9000}) save(store, files, step, 1);
  CHECK(store.steps() == Steps{2, 9000});
  CHECK(fs::read_symlink(dir.path() + "/checkpoints/last") == "step-9000");
  CHECK(fs::read_symlink(dir.path() + "/checkpoints/best") == "step-2");
  CHECK(text_of(dir.path() + "/checkpoints/last/one") == content(9000));
  store.mark_best(9000);
  save(store, files, 9001, 1);
  CHECK(store.steps() == Steps{9000, 9001});
  store.discard(9001);
  CHECK(store.steps() == Steps{9000});
  CHECK_THROWS_AS(store.mark_best(5), Error);
  check_whole(store);
}

TEST_CASE("a checkpoint of a step that is there stays", "[cpu]") {
  const TempDir dir;
  FailingFiles files;
  CheckpointStore store(dir.path(), files);
  save(store, files, 1);
  store.save(1, 1, [](const std::string&) { FAIL("written again"); });
  check_whole(store);
}

TEST_CASE("what a killed process left behind is ignored and removed", "[cpu]") {
  const TempDir dir;
  fs::create_directories(dir.path() + "/.saving-step-7");
  std::ofstream(dir.path() + "/.saving-step-7/one") << "half";
  fs::create_directories(dir.path() + "/step-x");
  CHECK(io::checkpoint_steps(dir.path()).empty());
  const CheckpointStore store(dir.path());
  CHECK_FALSE(fs::exists(dir.path() + "/.saving-step-7"));
  CHECK(io::checkpoint_steps(dir.path() + "/nowhere").empty());
}

TEST_CASE("a failure at any call of a save leaves the checkpoints before it", "[cpu]") {
  const TempDir counted;
  const int64_t calls = calls_of_a_save(counted.path());
  CHECK(calls > 20);
  for (int64_t at = 0; at < calls; ++at) {
    CAPTURE(at);
    const TempDir dir;
    prepare(dir.path());
    FailingFiles files(at, FailingFiles::How::error, at % 2 == 0 ? ENOSPC : EIO);
    CheckpointStore store(dir.path(), files);
    CHECK_THROWS_AS((save(store, files, 30, 1), store.mark_best(30)), StorageError);
    const Steps after = store.steps();
    CHECK(after.size() >= 1);
    CHECK((after.back() == 20 || after.back() == 30));
    check_whole(store);
    // Nothing half-written is left to fill the disk, and the same save succeeds afterwards.
    CHECK_FALSE(fs::exists(dir.path() + "/.saving-step-30"));
    FailingFiles healthy;
    CheckpointStore again(dir.path(), healthy);
    save(again, healthy, 30, 1);
    CHECK(again.steps().back() == 30);
    CHECK(fs::read_symlink(dir.path() + "/last") == "step-30");
    check_whole(again);
  }
}

TEST_CASE("a kill at any call of a save leaves whole checkpoints", "[cpu]") {
  const TempDir counted;
  const int64_t calls = calls_of_a_save(counted.path());
  for (int64_t at = 0; at < calls; ++at) {
    CAPTURE(at);
    const TempDir dir;
    prepare(dir.path());
    FailingFiles files(at, FailingFiles::How::kill);
    CheckpointStore store(dir.path(), files);
    CHECK_THROWS_AS((save(store, files, 30, 1), store.mark_best(30)), Killed);
    FailingFiles healthy;
    CheckpointStore again(dir.path(), healthy);
    CHECK((again.steps().back() == 20 || again.steps().back() == 30));
    check_whole(again);
    save(again, healthy, 30, 1);
    CHECK(again.steps().back() == 30);
    check_whole(again);
  }
}

TEST_CASE("a line log is cut back to where it was", "[cpu]") {
  const TempDir dir;
  const std::string path = dir.path() + "/log";
  int64_t known = 0;
  {
    io::LineLog log(path, 0);
    log.add("one");
    known = log.bytes();
    log.add("two");
  }
  CHECK(text_of(path) == "one\ntwo\n");
  {
    io::LineLog log(path, known);
    CHECK(log.bytes() == known);
    log.add("three");
  }
  CHECK(text_of(path) == "one\nthree\n");
  CHECK(io::LineLog(path, 1000).bytes() == 10);  // shorter than expected: goes on at its end
  for (int64_t at = 0; at < 4; ++at) {
    FailingFiles files(at);
    CHECK_THROWS_AS(io::LineLog(path, 4, files).add("four"), StorageError);
    std::ofstream(path) << "one\nthree\n";
  }
}

}  // namespace pm::test
