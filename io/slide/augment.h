// Random changes of a slide's picture for training. A draw depends on (seed, epoch, sample) alone.
#pragma once
#include <cstdint>

#include "io/slide/image.h"

namespace pm::io {

struct AugmentOptions {
  bool flip = true;              // mirrored left to right, half the time
  bool turn = true;              // by 0, 90, 180 or 270 degrees
  bool shift = true;             // the window grid moves by up to region_size - 1 pixels on both axes
  double stain = 0.05;           // share by which haematoxylin and eosin each vary, up or down; white stays white
  double brightness = 0.05;      // share by which the light varies
  double drop_background = 0.5;  // share of background windows left out, where background is kept at all
};

// What happens to one sample.
struct Augmentation {
  bool flip = false;
  int turns = 0;                                             // quarter turns, counter-clockwise
  int64_t shift_x = 0, shift_y = 0;                          // white pixels put before the picture
  double haematoxylin = 1.0, eosin = 1.0, brightness = 1.0;  // factors
  bool identity() const;
};

Augmentation draw_augmentation(const AugmentOptions& options, int64_t region_size, uint64_t seed, int64_t epoch,
                               int64_t sample);
// Whether background window `window` is left out, with the same dependence.
bool draw_drop(double probability, uint64_t seed, int64_t epoch, int64_t sample, int64_t window);

// Flip, turns and shift.
Image move_pixels(Image image, const Augmentation& augmentation);
// Stain and brightness: optical density to haematoxylin, eosin and what is left, the first two scaled
// (Ruifrok and Johnston 2001), then the light.
void change_colours(Image& image, const Augmentation& augmentation);

}  // namespace pm::io
