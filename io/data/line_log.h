// A text file that grows line by line, such as metrics.jsonl, and can be cut back to where a checkpoint knew it.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>

#include "io/data/file_ops.h"

namespace pm::io {

class LineLog {
 public:
  // Opens the file, made where it is missing, and cuts it to `bytes` (no more than it has). `ops` must outlive the log.
  // Throws IoError, StorageError.
  LineLog(std::string path, int64_t bytes, FileOps& ops = posix_file_ops());
  ~LineLog();
  LineLog(const LineLog&) = delete;
  LineLog& operator=(const LineLog&) = delete;

  // `text` with a line end. On disk when this returns. Throws StorageError.
  void add(std::string_view text);
  int64_t bytes() const { return bytes_; }

 private:
  std::string path_;
  FileOps& ops_;
  int descriptor_ = -1;
  int64_t bytes_ = 0;
};

}  // namespace pm::io
