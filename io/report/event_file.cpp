#include "io/report/event_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <cstring>
#include <filesystem>

#include "engine/core/check.h"
#include "io/data/atomic_file.h"

namespace pm::io {
namespace fs = std::filesystem;
namespace {

constexpr std::string_view kPrefix = "events.out.tfevents.";  // TensorBoard reads files of this name, in order of name
constexpr size_t kFlushBytes = 4096;

constexpr std::array<uint32_t, 256> make_crc_table() {
  constexpr uint32_t kPolynomial = 0x82F63B78;  // Castagnoli's, bits reversed
  std::array<uint32_t, 256> table{};
  for (uint32_t i = 0; i < 256; ++i) {
    uint32_t crc = i;
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) != 0 ? kPolynomial : 0);
    table[i] = crc;
  }
  return table;
}
constexpr std::array<uint32_t, 256> kCrcTable = make_crc_table();

// Little-endian, whatever this machine is.
template <typename T>
void append_fixed(std::string& out, T value) {
  for (size_t byte = 0; byte < sizeof(T); ++byte) out += static_cast<char>((value >> (8 * byte)) & 0xFF);
}

// ---- protobuf: a field is its number and wire type (0 varint, 1 eight bytes, 2 length and bytes, 5 four bytes), then the value
void append_varint(std::string& out, uint64_t value) {
  for (; value >= 0x80; value >>= 7) out += static_cast<char>((value & 0x7F) | 0x80);
  out += static_cast<char>(value);
}
void append_key(std::string& out, uint64_t field, uint64_t wire_type) { append_varint(out, field << 3 | wire_type); }
void append_int(std::string& out, uint64_t field, int64_t value) {
  append_key(out, field, 0);
  append_varint(out, static_cast<uint64_t>(value));
}
void append_double(std::string& out, uint64_t field, double value) {
  append_key(out, field, 1);
  append_fixed(out, std::bit_cast<uint64_t>(value));
}
void append_bytes(std::string& out, uint64_t field, std::string_view bytes) {
  append_key(out, field, 2);
  append_varint(out, bytes.size());
  out += bytes;
}
void append_float(std::string& out, uint64_t field, float value) {
  append_key(out, field, 5);
  append_fixed(out, std::bit_cast<uint32_t>(value));
}

// message Event { double wall_time = 1; int64 step = 2; oneof { string file_version = 3; Summary summary = 5; SessionLog
// session_log = 7; } }
std::string event_head(double wall_time, int64_t step) {
  std::string event;
  append_double(event, 1, wall_time);
  if (step != 0) append_int(event, 2, step);  // protobuf leaves out zeros
  return event;
}

// uint64 length, its masked CRC, the bytes, their masked CRC
void append_record(std::string& out, std::string_view bytes) {
  std::string length;
  append_fixed(length, uint64_t{bytes.size()});
  out += length;
  append_fixed(out, masked_crc32c(length));
  out += bytes;
  append_fixed(out, masked_crc32c(bytes));
}

double seconds_now() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

// The number in a name of an event file; 0 where there is none.
int64_t number_of(std::string_view name) {
  int64_t number = 0;
  if (name.starts_with(kPrefix)) std::from_chars(name.data() + kPrefix.size(), name.data() + name.size(), number);
  return number;
}

}  // namespace

uint32_t crc32c(std::string_view bytes) {
  uint32_t crc = 0xFFFFFFFF;
  for (const char byte : bytes) crc = (crc >> 8) ^ kCrcTable[(crc ^ static_cast<uint8_t>(byte)) & 0xFF];
  return ~crc;
}

uint32_t masked_crc32c(std::string_view bytes) {
  const uint32_t crc = crc32c(bytes);
  return ((crc >> 15) | (crc << 17)) + 0xA282EAD8;
}

EventFile::EventFile(const std::string& folder, int64_t resume_step) {
  make_folder(folder);
  // The names count seconds. A clock that was set back, or two starts in a second, must not change the order.
  const double now = seconds_now();
  auto number = static_cast<int64_t>(now);
  std::error_code failure;
  for (const auto& entry : fs::directory_iterator(folder, failure)) {
    number = std::max(number, number_of(entry.path().filename().string()) + 1);
  }
  path_ = fmt::format("{}/{}{:010}.pixel-mamba", folder, kPrefix, number);
  descriptor_ = ::open(path_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_APPEND | O_CLOEXEC, 0666);
  PM_CHECK(descriptor_ >= 0, IoError, "{}: cannot be written: {}", path_, std::strerror(errno));

  std::string version = event_head(now, 0);
  append_bytes(version, 3, "brain.Event:2");
  append_record(buffer_, version);
  if (resume_step >= 0) {
    std::string mark;
    append_int(mark, 1, 1);  // SessionLog { status = START }: what former files hold from this step on is void
    std::string start = event_head(now, resume_step + 1);
    append_bytes(start, 7, mark);
    append_record(buffer_, start);
  }
  try {
    flush();
  } catch (...) {
    ::close(descriptor_);  // no destructor runs
    throw;
  }
}

EventFile::~EventFile() {
  try {
    flush();
  } catch (const IoError&) {  // curves are not worth a run: who must know calls flush()
  }
  ::close(descriptor_);
}

void EventFile::add_scalar(std::string_view tag, int64_t step, double value) {
  add_scalar(tag, step, value, seconds_now());
}

void EventFile::add_scalar(std::string_view tag, int64_t step, double value, double wall_time) {
  std::string entry,
      summary;  // Summary { repeated Value value = 1; }   Value { string tag = 1; float simple_value = 2; }
  append_bytes(entry, 1, tag);
  append_float(entry, 2, static_cast<float>(value));
  append_bytes(summary, 1, entry);
  std::string event = event_head(wall_time, step);
  append_bytes(event, 5, summary);
  append_record(buffer_, event);
  if (buffer_.size() >= kFlushBytes) flush();
}

void EventFile::flush() {
  size_t written = 0;
  while (written < buffer_.size()) {
    const ssize_t done = ::write(descriptor_, buffer_.data() + written, buffer_.size() - written);
    if (done < 0 && errno == EINTR) continue;
    if (done < 0) {
      const int code = errno;
      buffer_.erase(0, written);  // a later call goes on where this one stopped
      throw IoError(fmt::format("{}: writing failed: {}{}", path_, std::strerror(code),
                                code == ENOSPC || code == EDQUOT ? " (free some space or choose another folder)" : ""));
    }
    written += static_cast<size_t>(done);
  }
  buffer_.clear();
}

}  // namespace pm::io
