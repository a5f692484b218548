#include "io/data/atomic_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
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

[[noreturn]] void fail(const std::string& path, const char* step, int code) {
  const char* hint = code == ENOSPC || code == EDQUOT ? " (free some space or choose another folder)" : "";
  throw IoError(fmt::format("{}: {}: {}{}", path, step, std::strerror(code), hint));
}

void sync_folder(const std::string& file) {
  const fs::path folder = fs::path(file).parent_path();
  const int descriptor = ::open(folder.empty() ? "." : folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (descriptor < 0) return;
  ::fsync(descriptor);  // some network file systems refuse this for folders: the file itself is safe already
  ::close(descriptor);
}

}  // namespace

AtomicFile::AtomicFile(const std::string& path) : path_(resolve(path)) {
  constexpr int kAttempts = 1000;  // left-over files of a killed process with the same number
  for (int attempt = 0; attempt < kAttempts && descriptor_ < 0; ++attempt) {
    temporary_ = fmt::format("{}.part-{}-{}", path_, ::getpid(), attempt);
    descriptor_ = ::open(temporary_.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (descriptor_ < 0 && errno != EEXIST) fail(path_, "cannot be written", errno);
  }
  if (descriptor_ < 0) fail(path_, "cannot be written", EEXIST);
}

AtomicFile::~AtomicFile() {
  if (descriptor_ < 0) return;
  ::close(descriptor_);
  ::unlink(temporary_.c_str());
}

void AtomicFile::write(const void* data, size_t bytes) {
  constexpr size_t kMaxCall = size_t{1} << 30;
  const auto* from = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t done = ::write(descriptor_, from, std::min(bytes, kMaxCall));
    if (done < 0 && errno == EINTR) continue;
    if (done < 0) fail(path_, "writing failed", errno);
    from += done;
    bytes -= static_cast<size_t>(done);
  }
}

void AtomicFile::commit() {
  PM_CHECK(descriptor_ >= 0, IoError, "{}: was committed already", path_);
  if (::fsync(descriptor_) != 0) fail(path_, "writing to disk failed", errno);
  if (::rename(temporary_.c_str(), path_.c_str()) != 0) fail(path_, "cannot be replaced", errno);
  ::close(descriptor_);
  descriptor_ = -1;
  sync_folder(path_);
}

void write_file_atomically(const std::string& path, std::string_view contents) {
  AtomicFile file(path);
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
