// NumPy's .npy array file, version 1.0. Source: numpy.org/doc/stable/reference/generated/numpy.lib.format.html
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace pm::io {

// values: (rows, columns), row after row; written as little-endian float32 that numpy.load() reads. The file appears
// whole or not at all. Throws ShapeError when the number of values is not rows * columns, IoError when writing fails.
void write_npy(const std::string& path, const std::vector<float>& values, int64_t rows, int64_t columns);

}  // namespace pm::io
