#include "engine/ops/token/serialize.h"

#include "engine/cpu/core/dispatch.h"

namespace pm::cpu {
namespace {

constexpr int kChannels = kPixelChannels;

// One pixel as normalised values; white outside the image.
template <typename T>
void read_pixel(const SerializeArgs& args, int64_t b, int64_t row, int64_t col, T* values) {
  const WindowGrid& grid = args.grid;
  const bool inside = row < grid.height && col < grid.width;
  for (int channel = 0; channel < kChannels; ++channel) {
    if (!inside) {
      values[channel] = normalised_pixel(T(1), channel);
    } else if (args.bytes) {
      const auto* pixels =
          static_cast<const uint8_t*>(args.image) + ((b * grid.height + row) * grid.width + col) * kChannels;
      values[channel] = normalised_pixel(static_cast<T>(pixels[channel]) / T(255), channel);
    } else {
      const T* pixels = static_cast<const T*>(args.image);
      values[channel] = pixels[((b * kChannels + channel) * grid.height + row) * grid.width + col];
    }
  }
}

}  // namespace

void serialize(const SerializeArgs& args) {
  const WindowGrid& grid = args.grid;
  const int64_t n_regions = grid.n_regions(), region_len = grid.region_len(), size = grid.region_size;
  const int64_t cells = size * size, cls = cls_index_of(cells);
  dispatch_float(args.dtype, [&]<typename T>() {
    const T* cls_token = static_cast<const T*>(args.cls_token);
#pragma omp parallel for
    for (int64_t window = 0; window < grid.batch * n_regions; ++window) {
      const int64_t b = window / n_regions;
      const auto corner = scan_cell(grid.scan, grid.cols(), window % n_regions);
      T* tokens = static_cast<T*>(args.tokens) + window * region_len * kChannels;
      for (int channel = 0; channel < kChannels; ++channel) tokens[cls * kChannels + channel] = cls_token[channel];
      for (int64_t position = 0; position < cells; ++position) {
        const auto cell = scan_cell(grid.scan, size, position);
        read_pixel(args, b, corner.row * size + cell.row, corner.col * size + cell.col,
                   tokens + token_of_position(position, cls) * kChannels);
      }
    }
  });
}

void deserialize(const DeserializeArgs& args) {
  const WindowGrid& grid = args.grid;
  const int64_t n_regions = grid.n_regions(), region_len = grid.region_len(), size = grid.region_size;
  const int64_t cls = cls_index_of(size * size), plane = grid.height * grid.width;
  dispatch_float(args.dtype, [&]<typename T>() {
#pragma omp parallel for
    for (int64_t line = 0; line < grid.batch * grid.height; ++line) {
      const int64_t b = line / grid.height, row = line % grid.height;
      T* image = static_cast<T*>(args.image) + b * kChannels * plane + row * grid.width;
      for (int64_t col = 0; col < grid.width; ++col) {
        const int64_t window = b * n_regions + scan_position(grid.scan, grid.cols(), row / size, col / size);
        const int64_t position = scan_position(grid.scan, size, row % size, col % size);
        const T* token =
            static_cast<const T*>(args.tokens) + (window * region_len + token_of_position(position, cls)) * kChannels;
        for (int channel = 0; channel < kChannels; ++channel) image[channel * plane + col] = token[channel];
      }
    }
  });
}

void serialize_cls_grad(const SerializeClsGradArgs& args) {
  const int64_t cls = cls_index_of(args.region_len - 1);
  dispatch_float(args.dtype, [&]<typename T>() {
    const T* dtokens = static_cast<const T*>(args.dtokens);
    for (int channel = 0; channel < kChannels; ++channel) {
      double sum = 0.0;
      for (int64_t region = 0; region < args.regions; ++region) {
        sum += static_cast<double>(dtokens[(region * args.region_len + cls) * kChannels + channel]);
      }
      static_cast<T*>(args.dcls_token)[channel] = static_cast<T>(sum);
    }
  });
}

}  // namespace pm::cpu
