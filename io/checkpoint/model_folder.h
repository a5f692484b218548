// A model folder: config.json + model.safetensors.
#pragma once
#include <string>

#include "io/data/file_ops.h"
#include "layers/model/pixel_mamba.h"

namespace pm::io {

// The network of a model folder with its weights. Throws IoError for files that cannot be read, ConfigError for contents
// that do not fit; both name the file.
PixelMamba read_model(Context& ctx, const std::string& folder, DType activation);

// Writes both files, each atomically; weights as f32. Creates the folder. Throws IoError, StorageError.
void write_model(const std::string& folder, const PixelMamba& model, FileOps& ops = posix_file_ops());

}  // namespace pm::io
