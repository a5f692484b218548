// Files opened for reading, and their names. Every failure is an IoError that names the file.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>

namespace pm::io {

class InputFile {
 public:
  // Throws IoError when the path is missing, a folder, no regular file, or not readable.
  explicit InputFile(const std::string& path);
  ~InputFile();
  InputFile(const InputFile&) = delete;
  InputFile& operator=(const InputFile&) = delete;

  const std::string& path() const { return path_; }
  int64_t size() const { return size_; }  // bytes
  // Exactly `bytes` bytes from `offset`. Throws IoError when the file ends before.
  void read(int64_t offset, void* destination, int64_t bytes) const;

 private:
  std::string path_;
  int descriptor_ = -1;
  int64_t size_ = 0;
};

// The whole file. Throws IoError when it is larger than max_bytes.
std::string read_file(const std::string& path, int64_t max_bytes = int64_t{1} << 30);

// What the name ends in, in lower case: ".csv"; empty where it has no ending.
std::string file_ending(const std::string& path);

}  // namespace pm::io
