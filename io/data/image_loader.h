// Batches of labelled pictures, read ahead of the network by a pool of threads, in a fixed order.
//
// Per picture: decoded, brought to size x size (io/data/image_augment.h), mixed with its partner. What comes out depends on the
// pictures, the options, the seed and the epoch alone, not on the number of workers or their timing. Workers share the pictures
// of a batch among them, so one large batch keeps all of them busy. Memory: the pictures of `ahead` batches, and one decoded
// picture a worker. A batch that was taken belongs to the caller.
//
//   ImageLoader loader(folder.train, options);
//   for (int64_t epoch = ..) {
//     loader.add({shuffled(all, seed, epoch), epoch, 0, true, true});  // io/data/order.h
//     while (auto batch = loader.next()) { .. }                         // resume: `first` = index of the last one taken + 1
//   }
#pragma once
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "io/data/image_augment.h"
#include "io/data/image_folder.h"

namespace pm::io {

struct ImageLoaderOptions {
  int64_t batch = 128, size = 224;  // pictures of a batch, pixels of their sides
  ImageAugmentOptions augment;      // for orders that ask for it; the others take the centre
  uint64_t seed = 0;
  int64_t workers = 4;
  int64_t ahead = 4;  // batches begun and not taken yet, at most
};

struct ImageBatch {
  int64_t epoch = 0, index = 0;  // of the order it came from
  int64_t images = 0;        // how many are real; a last batch that is not full repeats its first image up to `batch`
  int64_t size = 0;          // pixels of their sides
  std::vector<uint8_t> rgb;  // (batch, size, size, 3)
  std::vector<int64_t> labels;    // (batch)
  std::vector<int64_t> partners;  // (batch): labels of what was mixed in; equal to labels without mixup
  // Share of `labels`; partners have the rest. The partner of image i is image batch - 1 - i; mixed on the 8-bit values, rounded.
  double lambda = 1.0;
  struct Bad {
    std::string path, reason;
  };
  // Images of this batch that could not be decoded, in its order. In place of each stands the next one of the order that can be,
  // from the beginning again after the last.
  std::vector<Bad> bad;
};

// The batches of one pass.
struct ImageOrder {
  std::vector<int64_t> images;  // indices into the pictures, in the order of delivery
  int64_t epoch = 0;            // decides the augmentation, with the seed and the picture
  int64_t first = 0;            // first batch to deliver: where an interrupted pass goes on
  bool augment = false;
  bool drop_last = false;  // leaves out a batch that is not full
};

class ImageLoader {
 public:
  // Starts the workers. Throws ConfigError for options out of range.
  ImageLoader(std::vector<LabelledImage> images, ImageLoaderOptions options);
  // Gives up what is being read and waits for the workers to notice, a picture each.
  ~ImageLoader();
  ImageLoader(const ImageLoader&) = delete;
  ImageLoader& operator=(const ImageLoader&) = delete;

  // Appends an order to what is to be delivered; reading begins at once, ahead of next(). Throws ConfigError for an image or a
  // first batch out of range.
  void add(ImageOrder order);
  // The next batch; waits for it. Nothing when everything added was delivered. Throws IoError when no image of the batch's order
  // can be decoded; the call after it goes on with the next batch.
  std::optional<ImageBatch> next();

 private:
  class Pool;
  std::unique_ptr<Pool> pool_;
};

int64_t batches_of(int64_t images, int64_t batch, bool drop_last);

}  // namespace pm::io
