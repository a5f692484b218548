#include "io/data/file_ops.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>

#include "engine/core/check.h"

namespace pm::io {

int FileOps::open_new(const std::string& path) {
  return ::open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
}

int FileOps::open_append(const std::string& path) {
  return ::open(path.c_str(), O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
}

ssize_t FileOps::write(int descriptor, const void* data, size_t bytes) { return ::write(descriptor, data, bytes); }

int FileOps::sync(int descriptor) { return ::fsync(descriptor); }

int FileOps::sync_folder(const std::string& folder) {
  const int descriptor = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (descriptor < 0) return -1;
  const int result = ::fsync(descriptor);
  const int code = errno;
  ::close(descriptor);
  errno = code;
  return result;
}

int FileOps::truncate(int descriptor, int64_t bytes) { return ::ftruncate(descriptor, bytes); }

int FileOps::rename(const std::string& from, const std::string& to) { return std::rename(from.c_str(), to.c_str()); }

int FileOps::make_folder(const std::string& path) { return ::mkdir(path.c_str(), 0777); }

int FileOps::link(const std::string& target, const std::string& path) {
  return ::symlink(target.c_str(), path.c_str());
}

FileOps& posix_file_ops() {
  static FileOps ops;
  return ops;
}

void fail_file_call(const std::string& path, const char* step, int code) {
  const std::string message = fmt::format("{}: {}: {}", path, step, std::strerror(code));
  if (code == ENOSPC || code == EDQUOT) throw StorageError(message + " (free some space or choose another folder)");
  if (code == EIO || code == EFBIG) throw StorageError(message);
  throw IoError(message);
}

void write_all(FileOps& ops, int descriptor, const std::string& path, const void* data, size_t bytes) {
  constexpr size_t kMaxCall = size_t{1} << 30;
  const auto* from = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t done = ops.write(descriptor, from, std::min(bytes, kMaxCall));
    if (done < 0 && errno == EINTR) continue;
    if (done < 0) fail_file_call(path, "writing failed", errno);
    from += done;
    bytes -= static_cast<size_t>(done);
  }
}

void sync_folder(FileOps& ops, const std::string& folder) {
  if (ops.sync_folder(folder.empty() ? "." : folder) == 0) return;
  if (errno == EINVAL || errno == ENOTSUP || errno == EACCES)
    return;  // network file systems; the files are safe already
  fail_file_call(folder, "writing to disk failed", errno);
}

}  // namespace pm::io
