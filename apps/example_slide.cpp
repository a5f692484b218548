// example-slide: writes a small pyramidal TIFF that looks like stained tissue, to try the program without a slide at hand.
#include <cmath>

#include "apps/common.h"
#include "engine/core/check.h"
#include "engine/core/rng.h"
#include "io/slide/tiff_writer.h"

namespace pm::app {
namespace {

struct ExampleOptions {
  std::string out;
  int64_t width = 4096, height = 3072;
  uint64_t seed = 0;
};

// Smooth noise in [0, 1]: random values on a grid of `cell` pixels, cosine interpolated.
class ValueNoise {
 public:
  ValueNoise(RngState draw, double cell) : draw_(draw), cell_(cell) {}
  double at(double x, double y) const {
    const double gx = x / cell_, gy = y / cell_;
    const double fx = ease(gx - std::floor(gx)), fy = ease(gy - std::floor(gy));
    const auto ix = static_cast<int64_t>(std::floor(gx)), iy = static_cast<int64_t>(std::floor(gy));
    const double top = node(ix, iy) * (1 - fx) + node(ix + 1, iy) * fx;
    const double bottom = node(ix, iy + 1) * (1 - fx) + node(ix + 1, iy + 1) * fx;
    return top * (1 - fy) + bottom * fy;
  }

 private:
  static double ease(double t) { return t * t * (3.0 - 2.0 * t); }
  double node(int64_t x, int64_t y) const { return uniform_at(draw_, (y + 4) * 65536 + x + 4); }
  RngState draw_;
  double cell_;
};

// An oval piece of tissue on white glass: pink stroma, purple nuclei, holes where the noise is low.
io::Image draw_tissue(const ExampleOptions& options) {
  Rng rng(options.seed);
  const ValueNoise edge(rng.next(), 600.0), density(rng.next(), 180.0), fibre(rng.next(), 24.0), nuclei(rng.next(), 14.0);
  io::Image image;
  image.width = options.width;
  image.height = options.height;
  image.rgb.resize(static_cast<size_t>(3 * options.width * options.height));
#pragma omp parallel for
  for (int64_t row = 0; row < options.height; ++row) {
    for (int64_t column = 0; column < options.width; ++column) {
      const auto x = static_cast<double>(column), y = static_cast<double>(row);
      const double dx = 2.2 * (x / static_cast<double>(options.width) - 0.5), dy = 2.4 * (y / static_cast<double>(options.height) - 0.5);
      const double inside = 1.0 - dx * dx - dy * dy + 0.7 * (edge.at(x, y) - 0.5);
      double red = 243.0, green = 242.0, blue = 244.0;
      if (inside > 0.0 && density.at(x, y) > 0.22) {
        const double shade = 34.0 * fibre.at(x, y);
        red = 232.0 - 0.5 * shade, green = 178.0 - shade, blue = 205.0 - 0.6 * shade;
        if (nuclei.at(x, y) > 0.72 - 0.25 * density.at(x, y)) red = 104.0 + shade, green = 62.0 + 0.6 * shade, blue = 142.0 + 0.5 * shade;
      }
      uint8_t* pixel = &image.rgb[static_cast<size_t>(3 * (row * options.width + column))];
      pixel[0] = static_cast<uint8_t>(red);
      pixel[1] = static_cast<uint8_t>(green);
      pixel[2] = static_cast<uint8_t>(blue);
    }
  }
  return image;
}

int run_example(const ExampleOptions& options) {
  constexpr double kMpp = 0.5;
  io::write_pyramid_tiff(options.out, draw_tissue(options), kMpp);
  fmt::print("{}: {} x {} pixels of made-up tissue at {} um per pixel, pyramidal tiled TIFF\n", options.out, options.width,
             options.height, kMpp);
  return kDone;
}

}  // namespace

void add_example_slide(CLI::App& app, Command& command) {
  auto options = std::make_shared<ExampleOptions>();
  CLI::App* verb = app.add_subcommand("example-slide", "Write a small made-up slide (pyramidal TIFF) to try the program with");
  verb->add_option("OUT", options->out, "file to write, .tif")->required();
  verb->add_option("--width", options->width, "pixels")->capture_default_str()->check(CLI::Range(256, 32768))->type_name("PIXELS");
  verb->add_option("--height", options->height, "pixels")->capture_default_str()->check(CLI::Range(256, 32768))->type_name("PIXELS");
  verb->add_option("--seed", options->seed, "another seed, another slide")->capture_default_str()->type_name("N");
  verb->callback([options, &command] { command.exit_code = run_example(*options); });
}

}  // namespace pm::app
