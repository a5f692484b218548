// Slides read ahead of the network by a pool of threads, in a fixed order and within a fixed amount of memory.
//
// Per sample: read at the resolution asked for (or taken from the cache on disk), turned and shifted, background windows left
// out (io/slide/windows.h), colours changed. What comes out depends on the slide, the options, the seed and the epoch alone, not on
// the number of workers or their timing. A slide that cannot be read is a sample with an error, the others go on.
//
// Memory: a slide is admitted when its need, known from its header, fits beside what is being read and what waits to be taken, in
// the order of the samples; one that would not fit alone is a sample with an error. A sample that was taken belongs to the caller.
//
//   SlideLoader loader(cohort.slides(), options);
//   for (int64_t epoch = ..) {
//     loader.add({shuffled(fold.train, seed, epoch), epoch});  // io/data/order.h
//     while (auto sample = loader.next()) { .. }   // position() now names the sample after it: save it with the checkpoint
//   }
//   // the validation set takes a loader of its own
//   // resume: loader.add({shuffled(fold.train, seed, position.epoch), position.epoch, position.index});
#pragma once
#include <cstdint>
#include <memory>
#include <optional>
#include <stop_token>
#include <string>
#include <vector>

#include "io/data/slide_table.h"
#include "io/slide/augment.h"
#include "io/slide/image.h"
#include "io/slide/windows.h"

namespace pm::io {

struct LoaderOptions {
  double mpp = 4.0;                 // micrometres per pixel that the network sees
  std::optional<double> slide_mpp;  // of slides that do not say theirs, where the table does not either
  int64_t region_size = 0;          // of the network; 0: whole pictures, no window is left out and no grid is shifted
  bool raster = false;              // the network visits windows row by row
  bool keep_background = true;      // false: pure background windows are left out
  TissueOptions tissue;
  AugmentOptions augment;  // for orders that ask for it
  uint64_t seed = 0;
  int64_t workers = 2;
  int64_t max_bytes = int64_t{4} << 30;  // pixels being read or waiting
  std::string cache;                     // folder for resampled slides, made if missing; empty: none. 3 bytes per pixel
};

struct SlideSample {
  int64_t slide = 0;             // index into the rows
  int64_t epoch = 0, index = 0;  // of the order it came from
  std::string error;       // not empty: the slide cannot be used, and why (names the file); there is no image then
  Image image;             // what the network takes: (height, width, 3)
  double mpp = 0.0;        // 0: unknown, read as it is
  std::string mpp_source;  // as SlideImage
  int64_t tiles = 0, bad_tiles = 0;
  PictureGrid grid;           // of the picture, windows left out among them; 0 without region_size
  int64_t windows = 0;        // of the picture, kept or not; 0 without region_size
  int64_t background = 0;     // of them, without tissue (0 when keep_background and no window may be dropped)
  int64_t left_out = 0;       // of them, not in `image`
  std::vector<int64_t> kept;  // with left_out: row * cols + col of each window of `image`, in the order of the network
  bool no_tissue = false;     // by the mask the whole picture is background: nothing was left out
  bool from_cache = false;
  double seconds = 0.0;  // reading and changing, on its thread
};

// The samples of one pass.
struct LoaderOrder {
  std::vector<int64_t> slides;  // indices into the rows, in the order of delivery
  int64_t epoch = 0;            // decides the augmentation, with the seed and the slide
  int64_t first = 0;            // the first of `slides` to deliver: where an interrupted pass goes on
  bool augment = false;
};

// Where the consumer is: the sample that next() delivers next. At the end of an order, index is its length.
struct LoaderPosition {
  int64_t epoch = 0, index = 0;
  bool operator==(const LoaderPosition&) const = default;
};

struct LoaderStats {
  int64_t read = 0, from_cache = 0, errors = 0;
  int64_t cache_rebuilt = 0;  // damaged cache files, read from the slide again
  std::string cache_error;    // the first failure to write the cache (no space, ..); nothing is written after it
  int64_t peak_bytes = 0;     // admitted at once
  double wait_seconds = 0.0;  // the consumer waited in next()
};

class SlideLoader {
 public:
  // Starts the workers. Throws ConfigError for options out of range, IoError when the cache folder cannot be made.
  SlideLoader(std::vector<SlideRow> rows, LoaderOptions options);
  // Stops as stop() does and waits for the workers.
  ~SlideLoader();
  SlideLoader(const SlideLoader&) = delete;
  SlideLoader& operator=(const SlideLoader&) = delete;

  // Appends an order to what is to be delivered; reading begins at once, ahead of next(). Throws ConfigError for an index out
  // of range.
  void add(LoaderOrder order);
  // The next sample; waits for it. Nothing when everything added was delivered, or after stop.
  std::optional<SlideSample> next(std::stop_token stop = {});
  // Forgets everything added and not delivered yet.
  void clear();
  // For good: slides being read are given up, waiting calls return, nothing more comes. Any thread; not for signal handlers.
  void stop();
  // Of the order that next() took from last; of the first one added where there is none since the start or clear().
  LoaderPosition position() const;
  LoaderStats stats() const;

 private:
  class Pool;
  std::unique_ptr<Pool> pool_;
};

// The most pixels, in bytes, that a slide of this size holds at once on its way: reading (`read_bytes` of its plan), then moving,
// then packing.
int64_t loader_bytes(const LoaderOptions& options, int64_t width, int64_t height, int64_t read_bytes, bool augment);

}  // namespace pm::io
