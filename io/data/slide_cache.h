// Resampled slides on disk, so that a second pass over a cohort does not decode them again.
//
// One file per slide and settings, named by a hash of the key: the slide's path, size and time of change, the resolution, the
// version of the reader. The key stands in the file too, and a checksum of the pixels: a file that was cut, altered or made for
// something else is not used. Files appear whole or not at all; several runs may share a folder.
#pragma once
#include <cstdint>
#include <optional>
#include <string>

#include "io/slide/slide.h"

namespace pm::io {

struct CachedSize {
  int64_t width = 0, height = 0;
};

class SlideCache {
 public:
  // Makes the folder. Throws IoError when that fails.
  explicit SlideCache(const std::string& folder);
  // Throws IoError when the slide is not there.
  static std::string key(const std::string& slide, const SlideOptions& options);
  std::string file_of(const std::string& key) const;
  // From the header; nothing when there is no such file or it is damaged.
  std::optional<CachedSize> size(const std::string& key) const;
  // Nothing when there is no file for the key; `damaged` says that there was one that cannot be used.
  std::optional<SlideImage> load(const std::string& key, bool& damaged) const;
  // Throws IoError.
  void store(const std::string& key, const SlideImage& slide) const;

 private:
  std::string folder_;
};

}  // namespace pm::io
