#include "tests/apps/small_runs.h"

#include "io/checkpoint/model_folder.h"
#include "io/slide/image.h"
#include "tests/support/test.h"

namespace pm::test {

std::string write_small_model(const std::string& folder, Head head, int64_t outputs) {
  ModelConfig config;
  config.layers = {
      {3, Expansion::horizontal_cat}, {6, Expansion::vertical_cat}, {12, Expansion::horizontal_cat}, {24, {}}};
  config.region_size = 16;
  config.head = head;
  config.num_classes = outputs;
  io::write_model(folder, PixelMamba(cpu(), config, DType::f32, 1));
  return folder;
}

std::string write_stripes(const std::string& folder, int index) {
  io::Image image;
  image.width = 40 + 8 * (index % 3);
  image.height = 32;
  for (int64_t y = 0; y < image.height; ++y) {
    for (int64_t x = 0; x < image.width; ++x) {
      const bool dark = ((index % 2 == 0 ? y : x) + index) / 4 % 2 == 0;
      for (int c = 0; c < 3; ++c) image.rgb.push_back(dark ? 60 : 200);
    }
  }
  const std::string path = folder + "/stripes" + std::to_string(index) + ".png";
  io::write_png(path, image);
  return path;
}

}  // namespace pm::test
