// Which regions merge into which (engine/ops/token/region_fusion.h), decided on the device.
#pragma once
#include "cuda/core/launch.cuh"
#include "engine/ops/token/region_fusion.h"

namespace pm::cuda {

// What each output region is the mean of: the regions source[start[o]] .. source[start[o + 1] - 1], ascending. Rows count
// regions over all images: row b * n_regions + region of the input, b * (n_regions - k) + region of the output.
class RegionSources {
 public:
  RegionSources(Stream stream, int64_t rows, int64_t rows_out) : source_(stream, rows), start_(stream, rows_out + 1) {}
  int64_t* source() const { return source_.get(); }
  int64_t* start() const { return start_.get(); }

 private:
  Scratch<int64_t> source_, start_;
};

// Fills args.target and `sources`, made for batch * n_regions and batch * (n_regions - k) rows; leaves out and count alone.
// There must be at least one region.
void choose_regions(const RegionFusionArgs& args, const RegionSources& sources, Stream stream);

}  // namespace pm::cuda
