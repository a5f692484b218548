// Stored references: operators evaluated in float64 by an independent implementation.
#pragma once
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "autograd/core/variable.h"
#include "engine/core/tensor.h"

namespace pm::test {

// The tensors of tests/golden/ops/<file> (safetensors) by name, on the CPU: f32 and f64 come back as f64, i64 as i64.
// Throws IoError when the file is missing or malformed.
std::map<std::string, Tensor> load_golden(const std::string& file);

// The one value of a stored scalar.
double golden_item(const std::map<std::string, Tensor>& golden, const std::string& name);

// Runs fn on the inputs of a stored file, as variables of `dtype` in the order of `names`, and compares the value with
// `out` (or `loss`) and the gradient of each input `v` with `dv`, under the gradient `dout` where there is one. The file
// holds float32, so f64 is held to the tolerance of f32 too.
using GoldenFn =
    std::function<Variable(Context&, const std::map<std::string, Tensor>& golden, const std::vector<Variable>& inputs)>;
void check_golden_op(Context& ctx, const std::string& file, DType dtype, const std::vector<std::string>& names,
                     const GoldenFn& fn);

}  // namespace pm::test
