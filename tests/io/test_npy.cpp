#include <cstring>

#include "engine/core/error.h"
#include "io/data/file.h"
#include "io/data/npy.h"
#include "tests/support/test.h"

namespace pm::test {

TEST_CASE("npy files have the layout of format version 1.0", "[cpu]") {
  const TempDir dir;
  const std::string path = dir.path() + "/a.npy";
  const std::vector<float> values = {1.0f, -2.5f, 3e-30f, 4.0f, 5.0f, 6e30f};
  io::write_npy(path, values, 2, 3);
  const std::string bytes = io::read_file(path);
  REQUIRE(bytes.size() > 10);
  CHECK(bytes.substr(0, 8) == std::string("\x93NUMPY\x01\x00", 8));
  const size_t length =
      static_cast<unsigned char>(bytes[8]) + 256 * static_cast<size_t>(static_cast<unsigned char>(bytes[9]));
  CHECK((10 + length) % 64 == 0);
  REQUIRE(bytes.size() == 10 + length + values.size() * sizeof(float));
  const std::string header = bytes.substr(10, length);
  CHECK(header.rfind("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }", 0) == 0);
  CHECK(header.back() == '\n');
  CHECK(std::memcmp(bytes.data() + 10 + length, values.data(), values.size() * sizeof(float)) == 0);
}

TEST_CASE("npy takes empty arrays and refuses a wrong number of values", "[cpu]") {
  const TempDir dir;
  const std::string path = dir.path() + "/a.npy";
  io::write_npy(path, {}, 0, 384);
  CHECK(io::read_file(path).find("(0, 384)") != std::string::npos);
  CHECK_THROWS_AS(io::write_npy(path, {1.0f}, 2, 3), ShapeError);
  CHECK_THROWS_AS(io::write_npy(path, {}, -1, 0), ShapeError);
  CHECK_THROWS_AS(io::write_npy(dir.path() + "/none/a.npy", {1.0f}, 1, 1), IoError);
}

}  // namespace pm::test
