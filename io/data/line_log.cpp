#include "io/data/line_log.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>

#include "engine/core/check.h"

namespace pm::io {

LineLog::LineLog(std::string path, int64_t bytes, FileOps& ops) : path_(std::move(path)), ops_(ops) {
  descriptor_ = ops_.open_append(path_);
  if (descriptor_ < 0) fail_file_call(path_, "cannot be written", errno);
  try {
    struct stat status {};
    if (::fstat(descriptor_, &status) != 0) fail_file_call(path_, "cannot be read", errno);
    bytes_ = std::min<int64_t>(bytes, status.st_size);
    if (bytes_ < status.st_size && ops_.truncate(descriptor_, bytes_) != 0)
      fail_file_call(path_, "cannot be shortened", errno);
    sync_folder(ops_, std::filesystem::path(path_).parent_path().string());
  } catch (const Error&) {
    ::close(descriptor_);
    throw;
  }
}

LineLog::~LineLog() { ::close(descriptor_); }

void LineLog::add(std::string_view text) {
  std::string line(text);
  line += '\n';
  write_all(ops_, descriptor_, path_, line.data(), line.size());
  if (ops_.sync(descriptor_) != 0) fail_file_call(path_, "writing to disk failed", errno);
  bytes_ += static_cast<int64_t>(line.size());
}

}  // namespace pm::io
