// Pictures to squares of one size, for training and validation. A draw depends on (seed, epoch, image) alone.
#pragma once
#include <cstdint>

#include "io/slide/image.h"

namespace pm::io {

struct ImageAugmentOptions {
  double min_area =
      0.08;  // random resized crop (Szegedy et al., CVPR 2015): share of the picture's area, from this to 1;
             // 1: the whole picture, whatever its ratio
  double min_ratio = 3.0 / 4, max_ratio = 4.0 / 3;  // width / height of the crop, log-uniform
  bool flip = true;                                 // left to right, half the time
  double erase = 0.25;                              // probability of random erasing (Zhong et al., AAAI 2020)
  double mixup = 0.2;                               // alpha of the Beta distribution (Zhang et al., ICLR 2018); 0: none
};

// Throws ConfigError for options out of range.
void check_options(const ImageAugmentOptions& options);

// In pixels, from the upper left corner; fractions are meant.
struct CropBox {
  double x = 0, y = 0, width = 0, height = 0;
  bool flip = false;
};

// Inside a picture of width x height. Area and ratio are drawn up to ten times until the box fits; after that the box is the
// largest centred one with the ratio nearest to the picture's.
CropBox draw_crop(const ImageAugmentOptions& options, int64_t width, int64_t height, uint64_t seed, int64_t epoch,
                  int64_t image);

// The box as a picture of size x size, by a triangle filter that is widened where it shrinks (antialiased, as Pillow and
// torchvision do). Near the border of the box the filter reaches the picture around it, as Pillow's does. Throws ShapeError for a
// box outside the picture.
Image resample(const Image& image, const CropBox& box, int64_t size);

// With probability options.erase: a rectangle of 2 % to 33 % of the area, height / width 0.3 to 3.3, log-uniform, every value
// in it replaced by one drawn uniformly from 0 to 255. This is RE-R, the variant that Zhong et al. recommend, and nearly what timm's
// mode "pixel" does: there the values are normal with the mean and spread of ImageNet.
void erase(Image& image, const ImageAugmentOptions& options, uint64_t seed, int64_t epoch, int64_t index);

// For validation: the centred square of 7/8 of the shorter side (what is left of 256 when 224 are cut out), resampled. A
// picture of exactly size x size is taken as it is.
Image centre_crop(const Image& image, int64_t size);

// Beta(alpha, alpha) for a batch of an epoch; 1 for alpha 0. Throws ConfigError for negative alpha.
double draw_mixup(double alpha, uint64_t seed, int64_t epoch, int64_t batch);

}  // namespace pm::io
