// Scalars for TensorBoard: an event file (records of length, masked CRC-32C and a protobuf Event), written by hand.
//
// Each start of a run adds a file to the same folder, which is how TensorBoard joins a resumed run: no former file is touched,
// so that a record cut off by a kill costs only itself.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>

namespace pm::io {

class EventFile {
 public:
  // Creates `folder` where it is missing, and a new event file in it that TensorBoard reads after those that are there. With
  // resume_step >= 0 TensorBoard drops what former files hold after that step: they are about to be repeated.
  explicit EventFile(const std::string& folder, int64_t resume_step = -1);
  ~EventFile();
  EventFile(const EventFile&) = delete;
  EventFile& operator=(const EventFile&) = delete;

  // One point of the curve `tag` ("train/loss"). Throws IoError when the disk is full.
  void add_scalar(std::string_view tag, int64_t step, double value);
  void add_scalar(std::string_view tag, int64_t step, double value, double wall_time);  // seconds since 1970
  // Hands what was added to the operating system; also done by the destructor and after every few kilobytes.
  void flush();
  const std::string& path() const { return path_; }

 private:
  std::string path_, buffer_;
  int descriptor_ = -1;
};

// CRC-32C (Castagnoli) of some bytes, and as event files store it.
uint32_t crc32c(std::string_view bytes);
uint32_t masked_crc32c(std::string_view bytes);

}  // namespace pm::io
