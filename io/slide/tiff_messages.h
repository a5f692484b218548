// libtiff prints its messages to stderr through handlers that belong to the whole process.
#pragma once

namespace pm::io {

// No libtiff output while an object lives; the former handlers return with the last one. Any number in any thread.
class TiffSilence {
 public:
  TiffSilence();
  ~TiffSilence();
  TiffSilence(const TiffSilence&) = delete;
  TiffSilence& operator=(const TiffSilence&) = delete;
};

}  // namespace pm::io
