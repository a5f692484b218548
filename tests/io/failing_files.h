// File calls that fail, or at which the process dies, at a chosen place.
#pragma once
#include <cerrno>
#include <string>
#include <vector>

#include "io/data/file_ops.h"

namespace pm::test {

// Not a pm::Error: nothing in the program may catch it, as nothing catches a kill.
struct Killed {};

class FailingFiles final : public io::FileOps {
 public:
  enum class How { error, kill };
  // Without arguments nothing fails. The call number `at` (from 0, -1: none) fails with `code`; with `kill`, it and all calls after it never happen.
  explicit FailingFiles(int64_t at = -1, How how = How::error, int code = ENOSPC) : at_(at), how_(how), code_(code) {}

  int open_new(const std::string& path) override { return fails("open") ? -1 : FileOps::open_new(path); }
  int open_append(const std::string& path) override { return fails("open") ? -1 : FileOps::open_append(path); }
  ssize_t write(int descriptor, const void* data, size_t bytes) override {
    if (fails("write")) return -1;
    // Half of what is asked for, as a disk that fills up or a signal may do.
    return FileOps::write(descriptor, data, bytes > 1 ? bytes / 2 : bytes);
  }
  // Counted, not made: no test looks behind the cache of the operating system, and each takes milliseconds.
  int sync(int) override { return fails("sync") ? -1 : 0; }
  int sync_folder(const std::string&) override { return fails("sync_folder") ? -1 : 0; }
  int truncate(int descriptor, int64_t bytes) override {
    return fails("truncate") ? -1 : FileOps::truncate(descriptor, bytes);
  }
  int rename(const std::string& from, const std::string& to) override {
    return fails("rename") ? -1 : FileOps::rename(from, to);
  }
  int make_folder(const std::string& path) override { return fails("make_folder") ? -1 : FileOps::make_folder(path); }
  int link(const std::string& target, const std::string& path) override {
    return fails("link") ? -1 : FileOps::link(target, path);
  }

  // Every call so far, by name.
  const std::vector<std::string>& calls() const { return calls_; }

 private:
  bool fails(const char* name) {
    const auto number = static_cast<int64_t>(calls_.size());
    calls_.emplace_back(name);
    if (at_ < 0 || number < at_ || (how_ == How::error && number > at_)) return false;
    if (how_ == How::kill) throw Killed();
    errno = code_;
    return true;
  }

  int64_t at_;
  How how_;
  int code_;
  std::vector<std::string> calls_;
};

}  // namespace pm::test
