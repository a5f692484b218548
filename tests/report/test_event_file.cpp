#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <map>
#include <sstream>

#include "engine/core/error.h"
#include "io/report/event_file.h"
#include "tests/report/event_reader.h"
#include "tests/support/test.h"

namespace pm::test {
namespace {

namespace fs = std::filesystem;

std::string read_bytes(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::stringstream bytes;
  bytes << file.rdbuf();
  return bytes.str();
}

std::string from_hex(std::string_view hex) {
  std::string bytes;
  for (size_t i = 0; i + 1 < hex.size(); i += 2)
    bytes += static_cast<char>(std::stoi(std::string(hex.substr(i, 2)), nullptr, 16));
  return bytes;
}

}  // namespace

TEST_CASE("crc32c gives the checksums of RFC 3720", "[cpu]") {
  CHECK(io::crc32c("") == 0);
  CHECK(io::crc32c("123456789") == 0xE3069283);
  CHECK(io::crc32c(std::string(32, '\0')) == 0x8A9136AA);
  CHECK(io::crc32c(std::string(32, '\xFF')) == 0x62A8AB43);
  std::string counted;
  for (int i = 0; i < 32; ++i) counted += static_cast<char>(i);
  CHECK(io::crc32c(counted) == 0x46DD794E);
  // The mask of the format: rotated right by 15 bits, plus 0xa282ead8.
  CHECK(io::masked_crc32c("123456789") == uint32_t{0x2507C60D} + 0xA282EAD8);
}

TEST_CASE("an event file holds the bytes that the format asks for", "[cpu]") {
  const TempDir folder;
  std::string path;
  {
    io::EventFile file(folder.path() + "/new/fold-0");
    path = file.path();
    file.add_scalar("a", 300, 1.5, 2.0);
  }
  CHECK(fs::path(path).filename().string().starts_with("events.out.tfevents."));
  const std::string bytes = read_bytes(path);
  // 09 wall_time (double), 1a 0d file_version: 24 bytes
  const std::string version = bytes.substr(12, 24);
  CHECK(bytes.substr(0, 8) == from_hex("1800000000000000"));
  CHECK(bytes.substr(8, 4) ==
        from_hex("a37f4b22"));  // masked checksum of a length of 24, as every TensorFlow event file starts
  CHECK(version[0] == '\x09');
  CHECK(version.substr(9) == from_hex("1a0d") + "brain.Event:2");
  // wall_time 2.0 | step 300 | summary { value { tag "a", simple_value 1.5 } }
  const std::string event = from_hex(
      "090000000000000040"
      "10ac02"
      "2a0a"
      "0a08"
      "0a0161"
      "150000c03f");
  const size_t second = 12 + 24 + 4;
  CHECK(bytes.substr(second, 8) == from_hex("1800000000000000"));
  CHECK(bytes.substr(second + 12, event.size()) == event);
  CHECK(bytes.size() == second + 12 + event.size() + 4);
}

TEST_CASE("event files are read back by an independent reader", "[cpu]") {
  const TempDir folder;
  std::string path;
  {
    io::EventFile file(folder.path());
    path = file.path();
    for (int64_t step = 0; step < 1000; ++step) {
      file.add_scalar("train/loss", step, 1.0 / static_cast<double>(step + 1), 1000.0 + static_cast<double>(step));
    }
    file.add_scalar("a tag with ü and / and 200 letters " + std::string(200, 'x'), int64_t{1} << 40, -1e300);
    file.add_scalar("nan", 5, std::nan(""));
  }
  const Events events = read_events(path);
  CHECK(events.version == "brain.Event:2");
  CHECK_FALSE(events.cut_off);
  CHECK(events.starts.empty());
  REQUIRE(events.points.size() == 1002);
  CHECK(events.points[999].tag == "train/loss");
  CHECK(events.points[999].step == 999);
  CHECK(events.points[999].value == 0.001F);
  CHECK(events.points[999].wall_time == 1999.0);
  CHECK(events.points[1000].step == int64_t{1} << 40);
  CHECK(events.points[1000].value == -std::numeric_limits<float>::infinity());
  CHECK(events.points[1000].wall_time > 1.7e9);
  CHECK(std::isnan(events.points[1001].value));
}

TEST_CASE("a resumed run adds a file that is read later and voids the repeated steps", "[cpu]") {
  const TempDir folder;
  std::vector<std::string> paths;
  std::vector<std::string> before;
  for (int start = 0; start < 12; ++start) {  // within one second: names must still sort
    io::EventFile file(folder.path(), start == 0 ? -1 : 10 * start);
    for (int64_t step = 10 * start + 1; step <= 10 * start + 13; ++step)
      file.add_scalar("loss", step, static_cast<double>(start));
    file.flush();
    paths.push_back(file.path());
    before.push_back(read_bytes(file.path()));
  }
  CHECK(std::is_sorted(paths.begin(), paths.end()));
  CHECK(read_bytes(paths[0]) == before[0]);
  const std::vector<EventPoint> joined = join_files(folder.path());
  REQUIRE(joined.size() == 123);
  for (size_t i = 0; i < joined.size(); ++i) CHECK(joined[i].step == static_cast<int64_t>(i) + 1);
}

TEST_CASE("a record cut off by a kill costs only itself", "[cpu]") {
  const TempDir folder;
  std::string path;
  {
    io::EventFile file(folder.path());
    path = file.path();
    file.add_scalar("loss", 1, 1.0);
    file.add_scalar("loss", 2, 2.0);
  }
  fs::resize_file(path, fs::file_size(path) - 7);
  io::EventFile next(folder.path(), 1);
  next.add_scalar("loss", 2, 2.0);
  next.flush();
  const Events first = read_events(path), second = read_events(next.path());
  CHECK(first.cut_off);
  CHECK(first.points.size() == 1);
  CHECK(second.points.size() == 1);
  CHECK(second.starts == std::vector<int64_t>{2});
}

TEST_CASE("event files name the folder that cannot be written", "[cpu]") {
  const TempDir folder;
  const std::string blocked = folder.path() + "/file";
  std::ofstream(blocked) << "x";
  CHECK_THROWS_WITH(io::EventFile(blocked), ContainsSubstring(blocked));
}

}  // namespace pm::test
