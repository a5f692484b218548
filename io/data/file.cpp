#include "io/data/file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <cstring>
#include <filesystem>

#include "engine/core/check.h"

namespace pm::io {

InputFile::InputFile(const std::string& path) : path_(path) {
  // Checked by name first: opening a named pipe would wait for its writer.
  struct stat status {};
  PM_CHECK(::stat(path.c_str(), &status) == 0, IoError, "{}: {}", path,
           errno == ENOENT ? "no such file" : std::strerror(errno));
  PM_CHECK(!S_ISDIR(status.st_mode), IoError, "{}: is a folder, a file is needed", path);
  PM_CHECK(S_ISREG(status.st_mode), IoError, "{}: is not a regular file", path);
  descriptor_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  PM_CHECK(descriptor_ >= 0, IoError, "{}: cannot be opened for reading: {}", path, std::strerror(errno));
  size_ = ::fstat(descriptor_, &status) == 0 ? static_cast<int64_t>(status.st_size) : 0;
}

InputFile::~InputFile() { ::close(descriptor_); }

void InputFile::read(int64_t offset, void* destination, int64_t bytes) const {
  constexpr int64_t kMaxCall = int64_t{1} << 30;  // Linux reads at most 2 GiB in one call
  auto* out = static_cast<char*>(destination);
  while (bytes > 0) {
    const ssize_t got = ::pread(descriptor_, out, static_cast<size_t>(std::min(bytes, kMaxCall)), offset);
    if (got < 0 && errno == EINTR) continue;
    PM_CHECK(got >= 0, IoError, "{}: reading failed at byte {}: {}", path_, offset, std::strerror(errno));
    PM_CHECK(got > 0, IoError, "{}: the file ends at byte {}, {} more bytes are needed", path_, offset, bytes);
    out += got;
    offset += got;
    bytes -= got;
  }
}

std::string read_file(const std::string& path, int64_t max_bytes) {
  const InputFile file(path);
  PM_CHECK(file.size() <= max_bytes, IoError, "{}: has {} bytes, at most {} are read", path, file.size(), max_bytes);
  std::string contents(static_cast<size_t>(file.size()), '\0');
  file.read(0, contents.data(), file.size());
  return contents;
}

std::string file_ending(const std::string& path) {
  std::string ending = std::filesystem::path(path).extension().string();
  std::transform(ending.begin(), ending.end(), ending.begin(), [](unsigned char c) { return std::tolower(c); });
  return ending;
}

}  // namespace pm::io
