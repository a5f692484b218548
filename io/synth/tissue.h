// The picture of a made-up slide: two pieces of tissue, one above the other, with patches of fine and coarse nuclei.
#pragma once
#include "engine/core/rng.h"
#include "io/slide/image.h"

namespace pm::io {

struct TissueSlide {
  int64_t width = 0, height = 0;    // pixels
  double mpp = 1.0;                 // micrometres per pixel
  double coarse_share[2] = {0, 0};  // of the area of the upper and of the lower piece, 0 to 1
};

// `draws` gives the random streams of this slide.
Image draw_tissue(const TissueSlide& slide, Rng draws);

}  // namespace pm::io
