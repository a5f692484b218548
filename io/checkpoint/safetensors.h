// The safetensors file format: 8 bytes little-endian length of the header, the header as JSON, the tensors' bytes.
// Source: github.com/huggingface/safetensors, README "Format".
//
//   {"__metadata__": {name: text, ...}, "weight": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, ...}
//
// A file is untrusted. The header is checked completely before memory for any tensor is taken: its length against the
// file and 100 MB, JSON without duplicate keys, known dtypes, whole non-negative sizes whose product does not overflow
// and equals the bytes given, offsets that follow each other without gap or overlap and cover the file exactly.
#pragma once
#include <map>
#include <string>
#include <vector>

#include "engine/core/tensor.h"
#include "io/data/file_ops.h"

namespace pm::io {

struct SafetensorsEntry {
  std::string name;
  DType dtype = DType::f32;
  Shape shape;
  int64_t begin = 0, end = 0;  // bytes from the start of the file
};

struct SafetensorsHeader {
  std::vector<SafetensorsEntry> tensors;  // in the order of their bytes
  std::map<std::string, std::string> metadata;
};

// Reads and checks the header alone. Throws IoError naming the file, what is wrong and what would be right.
SafetensorsHeader read_safetensors_header(const std::string& path);
// All tensors, F32, F64, BF16, I64 and U8, on a CPU context (DeviceError elsewhere). Throws IoError as above.
std::map<std::string, Tensor> read_safetensors(Context& host, const std::string& path);
// Tensors of any device. The file appears whole or not at all; the same tensors give the same bytes. Throws IoError.
void write_safetensors(const std::string& path, const std::map<std::string, Tensor>& tensors,
                       const std::map<std::string, std::string>& metadata = {}, FileOps& ops = posix_file_ops());

}  // namespace pm::io
