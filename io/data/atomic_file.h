// Writing so that a reader sees the former file or the whole new one, never a part of it: the bytes go to a temporary
// file in the same folder, are forced to disk, and take the name in one step.
#pragma once
#include <cstddef>
#include <string>
#include <string_view>

#include "io/data/file_ops.h"

namespace pm::io {

class AtomicFile {
 public:
  // Opens the temporary file. Throws IoError when the folder is missing or not writable, or `path` is no regular file;
  // from here on StorageError when the disk refuses. `ops` must outlive this object.
  explicit AtomicFile(const std::string& path, FileOps& ops = posix_file_ops());
  // Without commit() the temporary file is removed and a former file stays as it was.
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  void write(const void* data, size_t bytes);
  void write(std::string_view text) { write(text.data(), text.size()); }
  // Readable, writable and seekable, for libraries that write themselves. Owned by this object: duplicate before
  // handing over.
  int descriptor() const { return descriptor_; }
  // Forces the bytes to disk and gives the file its name.
  void commit();

 private:
  FileOps& ops_;
  std::string path_, temporary_;
  int descriptor_ = -1;
};

// The whole contents of a file in one call.
void write_file_atomically(const std::string& path, std::string_view contents, FileOps& ops = posix_file_ops());
// The folder and its parents, as far as they are missing. Throws IoError when that fails.
void make_folder(const std::string& path);

}  // namespace pm::io
