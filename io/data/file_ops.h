// The calls of the operating system that saving depends on, behind an interface, so that a test can fail each of them.
#pragma once
#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <string>

namespace pm::io {

// Each as the POSIX call named: -1 with errno set when it fails.
class FileOps {
 public:
  virtual ~FileOps() = default;
  virtual int open_new(const std::string& path);     // open: read and write, a file that is not there yet
  virtual int open_append(const std::string& path);  // open: write at the end, made where it is missing
  virtual ssize_t write(int descriptor, const void* data, size_t bytes);
  virtual int sync(int descriptor);                     // fsync of a file
  virtual int sync_folder(const std::string& folder);   // fsync of a folder: makes new names in it last
  virtual int truncate(int descriptor, int64_t bytes);  // ftruncate
  virtual int rename(const std::string& from, const std::string& to);
  virtual int make_folder(const std::string& path);                      // mkdir
  virtual int link(const std::string& target, const std::string& path);  // symlink
};

// The calls themselves; holds nothing.
FileOps& posix_file_ops();

// Throws for a call that failed with `code`: StorageError when the disk is full, over quota or failing, IoError otherwise (a
// missing folder, no permission).
[[noreturn]] void fail_file_call(const std::string& path, const char* step, int code);

// All bytes, however many calls that takes. Throws StorageError.
void write_all(FileOps& ops, int descriptor, const std::string& path, const void* data, size_t bytes);
// fsync of the folder. Throws StorageError; file systems that know no such call pass.
void sync_folder(FileOps& ops, const std::string& folder);

}  // namespace pm::io
