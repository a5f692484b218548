// Reads event files back: a reader of its own, sharing nothing with the writer.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace pm::test {

struct EventPoint {
  std::string tag;
  int64_t step = 0;
  float value = 0.0F;
  double wall_time = 0.0;
};

struct Events {
  std::string version;
  std::vector<EventPoint> points;
  std::vector<int64_t> starts;  // steps of SessionLog START
  bool cut_off = false;
};

// Fails the test when a checksum is wrong.
Events read_events(const std::string& path);
// All event files of a folder, as TensorBoard joins them: in the order of their names, a START drops what has its step or a
// later one.
std::vector<EventPoint> join_files(const std::string& folder);

}  // namespace pm::test
