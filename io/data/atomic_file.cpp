#include "io/data/atomic_file.h"

#include <unistd.h>

#include <cerrno>
#include <filesystem>

#include "engine/core/check.h"

namespace pm::io {
namespace fs = std::filesystem;
namespace {

// Where a link points, so that replacing it keeps the link.
std::string resolve(const std::string& path) {
  std::error_code failure;
  if (!fs::exists(path, failure)) return path;
  PM_CHECK(!fs::is_directory(path, failure), IoError, "{}: is a folder, cannot be written as a file", path);
  PM_CHECK(fs::is_regular_file(path, failure), IoError, "{}: is not a regular file, it is not replaced", path);
  const fs::path target = fs::canonical(path, failure);
  return failure ? path : target.string();
}

}  // namespace

AtomicFile::AtomicFile(const std::string& path, FileOps& ops) : ops_(ops), path_(resolve(path)) {
  constexpr int kAttempts = 1000;  // left-over files of a killed process with the same number
  for (int attempt = 0; attempt < kAttempts && descriptor_ < 0; ++attempt) {
    temporary_ = fmt::format("{}.part-{}-{}", path_, ::getpid(), attempt);
    descriptor_ = ops_.open_new(temporary_);
    if (descriptor_ < 0 && errno != EEXIST) fail_file_call(path_, "cannot be written", errno);
  }
  if (descriptor_ < 0) fail_file_call(path_, "cannot be written", EEXIST);
}

AtomicFile::~AtomicFile() {
  if (descriptor_ < 0) return;
  ::close(descriptor_);
  ::unlink(temporary_.c_str());
}

void AtomicFile::write(const void* data, size_t bytes) { write_all(ops_, descriptor_, path_, data, bytes); }

void AtomicFile::commit() {
  PM_CHECK(descriptor_ >= 0, IoError, "{}: was committed already", path_);
  if (ops_.sync(descriptor_) != 0) fail_file_call(path_, "writing to disk failed", errno);
  if (ops_.rename(temporary_, path_) != 0) fail_file_call(path_, "cannot be replaced", errno);
  ::close(descriptor_);
  descriptor_ = -1;
  sync_folder(ops_, fs::path(path_).parent_path().string());
}

void write_file_atomically(const std::string& path, std::string_view contents, FileOps& ops) {
  AtomicFile file(path, ops);
  file.write(contents);
  file.commit();
}

void make_folder(const std::string& path) {
  std::error_code failure;
  fs::create_directories(path, failure);
  PM_CHECK(fs::is_directory(path), IoError, "{}: the folder cannot be made: {}", path,
           failure ? failure.message() : "a file of that name is there");
}

}  // namespace pm::io
