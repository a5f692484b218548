#include <cstring>
#include <filesystem>
#include <fstream>

#include "engine/core/error.h"
#include "io/checkpoint/safetensors.h"
#include "io/data/atomic_file.h"
#include "io/data/file.h"
#include "tests/support/test.h"

namespace pm::test {
namespace fs = std::filesystem;
namespace {

void write_raw(const std::string& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary).write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
}

std::string file_bytes(const std::string& header, size_t data_bytes) {
  const uint64_t length = header.size();
  std::string bytes(sizeof(length), '\0');
  std::memcpy(bytes.data(), &length, sizeof(length));
  return bytes + header + std::string(data_bytes, '\1');
}

std::string error_of(const std::string& path) {
  try {
    io::read_safetensors(cpu(), path);
  } catch (const IoError& error) {
    return error.what();
  }
  return "";
}

std::map<std::string, Tensor> every_dtype() {
  std::map<std::string, Tensor> tensors;
  tensors["f32"] = on(cpu(), normal(1, {3, 5}), DType::f32);
  tensors["f64"] = normal(2, {2, 1, 4});
  tensors["bf16"] = on(cpu(), normal(3, {7}), DType::bf16);
  tensors["i64"] = Tensor::from_host(cpu(), {3}, std::vector<int64_t>{-1, 0, int64_t{1} << 40});
  tensors["u8"] = Tensor::from_host(cpu(), {1, 3}, std::vector<uint8_t>{0, 128, 255});
  tensors["scalar \"\u00b5\""] = Tensor::from_host(cpu(), Shape{}, std::vector<float>{2.5f});
  tensors["none"] = Tensor::empty(cpu(), {4, 0}, DType::f32);
  return tensors;
}

}  // namespace

TEST_CASE("safetensors keep every bit, shape and dtype", "[cpu]") {
  const TempDir dir;
  const std::string path = dir.path() + "/weights.safetensors";
  const auto written = every_dtype();
  const std::map<std::string, std::string> metadata = {{"format", "pm"}, {"note", "a \"quote\"\n"}};
  io::write_safetensors(path, written, metadata);
  const auto read = io::read_safetensors(cpu(), path);
  REQUIRE(read.size() == written.size());
  for (const auto& [name, tensor] : written) check_same_bits(read.at(name), tensor, name);
  const io::SafetensorsHeader header = io::read_safetensors_header(path);
  CHECK(header.metadata == metadata);
  for (const io::SafetensorsEntry& entry : header.tensors) {
    CHECK(entry.begin % static_cast<int64_t>(size_of(entry.dtype)) == 0);
  }
  const std::string first = io::read_file(path);
  io::write_safetensors(path, read, metadata);
  CHECK(io::read_file(path) == first);
  CHECK(std::distance(fs::directory_iterator(dir.path()), fs::directory_iterator{}) == 1);
}

TEST_CASE("safetensors without tensors and with zero-size tensors anywhere", "[cpu]") {
  const TempDir dir;
  const std::string path = dir.path() + "/a.safetensors";
  io::write_safetensors(path, {});
  CHECK(io::read_safetensors(cpu(), path).empty());
  write_raw(path, file_bytes(R"({"b":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},)"
                             R"("z":{"dtype":"F64","shape":[0,3],"data_offsets":[2,2]},)"
                             R"("a":{"shape":[1],"data_offsets":[2,3],"dtype":"U8"}}   )",
                             3));
  CHECK(io::read_safetensors(cpu(), path).size() == 3);
}

TEST_CASE("safetensors refuse malformed headers with the reason", "[cpu]") {
  struct Case {
    const char* header;
    size_t data_bytes;
    const char* message;
  };
  const Case bad = GENERATE(values<Case>({
      {R"([])", 0, "must begin with '{'"},
      {R"( {})", 0, "must begin with '{'"},
      {R"({"a":1})", 0, "must be an object with dtype, shape and data_offsets, not the number 1"},
      {R"({"a":[1]})", 0, "must be an object with dtype, shape and data_offsets, not a list"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]})", 4, "not valid JSON"},
      {R"({} x)", 0, "not valid JSON"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})",
       8, "the name occurs twice"},
      {R"({"a":{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}})", 4, "the key 'dtype' occurs twice"},
      {R"({"a":{"dtype":"F16","shape":[1],"data_offsets":[0,2]}})", 2, "dtype 'F16' is not supported"},
      {R"({"a":{"dtype":5,"shape":[1],"data_offsets":[0,2]}})", 2, "dtype must be a text"},
      {R"({"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}})", 4, "must be a list of whole numbers from 0"},
      {R"({"a":{"dtype":"F32","shape":[1.0],"data_offsets":[0,4]}})", 4, "must be a list of whole numbers from 0"},
      {R"({"a":{"dtype":"F32","shape":[99999999999999999999],"data_offsets":[0,4]}})", 4,
       "must be a list of whole numbers"},
      {R"({"a":{"dtype":"F32","shape":[9223372036854775808],"data_offsets":[0,4]}})", 4,
       "must be a list of whole numbers"},
      {R"({"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,4]}})", 4, "more than 2^63 bytes"},
      {R"({"a":{"dtype":"F32","shape":[4611686018427387904],"data_offsets":[0,4]}})", 4, "more than 2^63 bytes"},
      {R"({"a":{"dtype":"F32","shape":[1,1,1,1,1,1,1],"data_offsets":[0,4]}})", 4, "'shape' has more than 6 numbers"},
      {R"({"a":{"dtype":"F32","shape":1,"data_offsets":[0,4]}})", 4, "'shape' must be a list"},
      {R"({"a":{"dtype":"F32","shape":[[1]],"data_offsets":[0,4]}})", 4, "'shape' must be a list"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4,8]}})", 8, "'data_offsets' has more than 2 numbers"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[4]}})", 4, "data_offsets must be [begin, end], got 1"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}})", 4, "end before they begin"},
      {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}})", 4, "needs 8 bytes"},
      {R"({"a":{"dtype":"F32","shape":[1]}})", 4, "'data_offsets' is missing"},
      {R"({"a":{"shape":[1],"data_offsets":[0,4]}})", 4, "'dtype' is missing"},
      {R"({"a":{"dtype":"F32","data_offsets":[0,4]}})", 4, "'shape' is missing"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"more":1}})", 4, "unknown key 'more'"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})", 8, "a gap"},
      {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}})",
       12, "overlaps"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})", 3, "it is cut off"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})", 5, "the tensors end at data byte 4"},
      {R"({"a":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4000000000000]}})", 4, "it is cut off"},
      {R"({"__metadata__":{"a":1}})", 0, "the value of 'a' must be text"},
      {R"({"__metadata__":{"a":{}}})", 0, "the value of 'a' must be text, not an object"},
      {R"({"a":{"dtype":null,"shape":[1],"data_offsets":[0,4]}})", 4, "not null"},
      {"{\"a\xff\":{}}", 0, "not valid JSON"},
  }));
  CAPTURE(bad.header);
  const TempDir dir;
  const std::string path = dir.path() + "/bad.safetensors";
  write_raw(path, file_bytes(bad.header, bad.data_bytes));
  const std::string message = error_of(path);
  CHECK_THAT(message, ContainsSubstring(bad.message));
  CHECK_THAT(message, ContainsSubstring(path));
}

TEST_CASE("safetensors bound the header's length and depth", "[cpu]") {
  const TempDir dir;
  const std::string path = dir.path() + "/bad.safetensors";
  write_raw(path, std::string("\xff\xff\xff\xff\xff\xff\xff\xff{}", 10));
  CHECK_THAT(error_of(path), ContainsSubstring("at most 100000000"));
  write_raw(path, std::string("\x00\x00\x00\x01\x00\x00\x00\x00{}", 10));
  CHECK_THAT(error_of(path), ContainsSubstring("the file is cut off"));
  write_raw(path, file_bytes("", 0));
  CHECK_THAT(error_of(path), ContainsSubstring("must begin with"));
  const std::string deep = R"({"a":{"shape":)" + std::string(1'000'000, '[');
  write_raw(path, file_bytes(deep, 0));
  CHECK_THAT(error_of(path), ContainsSubstring("'shape' must be a list"));
  CHECK_THAT(error_of(dir.path() + "/missing.safetensors"), ContainsSubstring("no such file"));
  CHECK_THAT(error_of(dir.path()), ContainsSubstring("is a folder"));
}

TEST_CASE("safetensors cut at any byte are refused", "[cpu]") {
  const TempDir dir;
  const std::string path = dir.path() + "/cut.safetensors";
  io::write_safetensors(path, {{"a", on(cpu(), normal(1, {2, 3}), DType::f32)}, {"b", normal(2, {1})}});
  const std::string whole = io::read_file(path);
  for (size_t bytes = 0; bytes < whole.size(); ++bytes) {
    CAPTURE(bytes);
    write_raw(path, whole.substr(0, bytes));
    CHECK_FALSE(error_of(path).empty());
  }
  write_raw(path, whole + "x");
  CHECK_FALSE(error_of(path).empty());
}

TEST_CASE("safetensors with any header byte changed are read or refused with IoError", "[cpu]") {
  const TempDir dir;
  const std::string path = dir.path() + "/flip.safetensors";
  io::write_safetensors(path, {{"a", on(cpu(), normal(1, {2}), DType::f32)}, {"b", normal(2, {1})}}, {{"k", "v"}});
  const std::string whole = io::read_file(path);
  const size_t header_end = whole.size() - 16;
  for (size_t at = 0; at < header_end; ++at) {
    for (const unsigned flip : {0x01u, 0x08u, 0x80u}) {
      std::string changed = whole;
      changed[at] = static_cast<char>(static_cast<unsigned char>(changed[at]) ^ flip);
      write_raw(path, changed);
      CAPTURE(at, flip);
      CHECK_NOTHROW(error_of(path));  // anything but IoError would come through
    }
  }
}

TEST_CASE("the golden files are safetensors", "[cpu]") {
  int files = 0;
  for (const auto& file : fs::recursive_directory_iterator(golden_dir())) {
    if (file.path().extension() != ".safetensors") continue;
    CAPTURE(file.path().string());
    CHECK_FALSE(io::read_safetensors(cpu(), file.path().string()).empty());
    ++files;
  }
  CHECK(files > 0);
}

TEST_CASE("a failed write leaves the former file and nothing else", "[cpu]") {
  const TempDir dir;
  const std::string path = dir.path() + "/kept.safetensors";
  io::write_safetensors(path, {{"a", normal(1, {3})}});
  const std::string before = io::read_file(path);
  CHECK_THROWS_AS(io::write_safetensors(path, {{"undefined", Tensor()}}), IoError);
  CHECK_THROWS_AS(io::write_safetensors(path, {{"\xff", normal(1, {3})}}), IoError);
  CHECK_THROWS_AS(io::write_safetensors(path, {{"__metadata__", normal(1, {3})}}), IoError);
  {
    io::AtomicFile abandoned(path);
    abandoned.write("half");
  }
  CHECK(io::read_file(path) == before);
  CHECK(std::distance(fs::directory_iterator(dir.path()), fs::directory_iterator{}) == 1);
  CHECK_THROWS_AS(io::write_file_atomically(dir.path() + "/no/such/folder/x", "x"), IoError);
  CHECK_THROWS_AS(io::write_file_atomically(dir.path(), "x"), IoError);
  CHECK_THROWS_AS(io::write_file_atomically("/dev/null", "x"), IoError);
}

}  // namespace pm::test
