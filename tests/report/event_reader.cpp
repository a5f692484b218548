#include "tests/report/event_reader.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <sstream>
#include <string_view>

#include "tests/support/test.h"

namespace pm::test {
namespace {

std::string read_bytes(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::stringstream bytes;
  bytes << file.rdbuf();
  return bytes.str();
}

// Bitwise CRC, fields by number.
uint32_t slow_masked_crc(std::string_view bytes) {
  uint32_t crc = ~0U;
  for (const char c : bytes) {
    crc ^= static_cast<uint8_t>(c);
    for (int i = 0; i < 8; ++i) crc = (crc & 1U) != 0 ? crc >> 1 ^ 0x82F63B78U : crc >> 1;
  }
  crc = ~crc;
  return ((crc >> 15) | (crc << 17)) + 0xA282EAD8U;
}

template <typename T>
T little_endian(std::string_view bytes, size_t at) {
  T value;
  std::memcpy(&value, bytes.data() + at, sizeof value);  // the tests run on little-endian machines
  return value;
}

struct Field {
  uint64_t number = 0;  // of a varint or the bits of a fixed field
  std::string bytes;
};

std::map<int, Field> parse_message(std::string_view text) {
  std::map<int, Field> fields;
  size_t at = 0;
  const auto varint = [&] {
    uint64_t value = 0;
    for (int shift = 0;; shift += 7) {
      const auto byte = static_cast<uint8_t>(text.at(at++));
      value |= uint64_t{byte & 0x7FU} << shift;
      if (byte < 0x80) return value;
    }
  };
  while (at < text.size()) {
    const uint64_t key = varint();
    Field field;
    switch (key & 7) {
      case 0:
        field.number = varint();
        break;
      case 1:
        field.number = little_endian<uint64_t>(text, at);
        at += 8;
        break;
      case 5:
        field.number = little_endian<uint32_t>(text, at);
        at += 4;
        break;
      default: {
        const uint64_t size = varint();
        field.bytes = text.substr(at, size);
        REQUIRE(field.bytes.size() == size);
        at += size;
      }
    }
    fields[static_cast<int>(key >> 3)] = field;
  }
  return fields;
}

}  // namespace

Events read_events(const std::string& path) {
  const std::string bytes = read_bytes(path);
  Events events;
  for (size_t at = 0; at < bytes.size();) {
    if (bytes.size() - at < 12 || bytes.size() - at - 12 < little_endian<uint64_t>(bytes, at) + 4) {
      events.cut_off = true;
      break;
    }
    const auto size = little_endian<uint64_t>(bytes, at);
    REQUIRE(little_endian<uint32_t>(bytes, at + 8) == slow_masked_crc(std::string_view(bytes).substr(at, 8)));
    const std::string record = bytes.substr(at + 12, size);
    REQUIRE(little_endian<uint32_t>(bytes, at + 12 + size) == slow_masked_crc(record));
    at += 16 + size;
    auto event = parse_message(record);
    const auto step = static_cast<int64_t>(event[2].number);
    if (event.count(3) != 0) events.version = event[3].bytes;
    if (event.count(7) != 0) {
      CHECK(parse_message(event[7].bytes)[1].number == 1);
      events.starts.push_back(step);
    }
    if (event.count(5) != 0) {
      auto value = parse_message(parse_message(event[5].bytes)[1].bytes);
      events.points.push_back({value[1].bytes, step, std::bit_cast<float>(static_cast<uint32_t>(value[2].number)),
                               std::bit_cast<double>(event[1].number)});
    }
  }
  return events;
}

std::vector<EventPoint> join_files(const std::string& folder) {
  std::vector<std::string> paths;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    if (entry.path().filename().string().starts_with("events.out.tfevents.")) paths.push_back(entry.path().string());
  }
  std::sort(paths.begin(), paths.end());
  std::vector<EventPoint> joined;
  for (const std::string& path : paths) {
    const Events events = read_events(path);
    for (const int64_t start : events.starts)
      std::erase_if(joined, [&](const EventPoint& point) { return point.step >= start; });
    joined.insert(joined.end(), events.points.begin(), events.points.end());
  }
  return joined;
}

}  // namespace pm::test
