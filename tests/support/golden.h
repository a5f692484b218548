// Stored references: operators evaluated in float64 by an independent implementation.
#pragma once
#include <map>
#include <string>

#include "engine/core/tensor.h"

namespace pm::test {

// The tensors of tests/golden/ops/<file> (safetensors) by name, on the CPU: f32 and f64 come back as f64, i64 as i64.
// Throws IoError when the file is missing or malformed.
std::map<std::string, Tensor> load_golden(const std::string& file);

}  // namespace pm::test
