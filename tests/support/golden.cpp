#include "tests/support/golden.h"

#include <cstring>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <vector>

#include "engine/core/check.h"
#include "tests/support/test.h"

namespace pm::test {
namespace {

// `bytes` as values of type From, converted to To.
template <typename From, typename To>
std::vector<To> values_of(const char* bytes, size_t count) {
  std::vector<From> source(count);
  if (count != 0) std::memcpy(source.data(), bytes, count * sizeof(From));
  return {source.begin(), source.end()};
}

Tensor parse_tensor(const std::string& name, const nlohmann::json& entry, const char* data, size_t size) {
  const auto dims = entry.at("shape").get<std::vector<int64_t>>();
  const auto range = entry.at("data_offsets").get<std::vector<size_t>>();
  const auto dtype = entry.at("dtype").get<std::string>();
  const Shape shape(dims.begin(), dims.end());
  const auto count = static_cast<size_t>(shape.numel());
  const size_t width = dtype == "F32" ? 4 : 8;
  PM_CHECK(range.size() == 2 && range[0] <= range[1] && range[1] <= size && range[1] - range[0] == count * width,
           IoError, "tensor {} of shape {} does not match its bytes", name, shape.str());
  const char* bytes = data + range[0];
  if (dtype == "F32") return Tensor::from_host(cpu(), shape, values_of<float, double>(bytes, count));
  if (dtype == "F64") return Tensor::from_host(cpu(), shape, values_of<double, double>(bytes, count));
  PM_CHECK(dtype == "I64", IoError, "tensor {} has dtype {}, expected F32, F64 or I64", name, dtype);
  return Tensor::from_host(cpu(), shape, values_of<int64_t, int64_t>(bytes, count));
}

}  // namespace

std::map<std::string, Tensor> load_golden(const std::string& file) {
  const std::string path = golden_dir() + "/ops/" + file;
  std::ifstream stream(path, std::ios::binary);
  PM_CHECK(stream.good(), IoError, "cannot read {}", path);
  const std::vector<char> content{std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
  uint64_t header = 0;
  PM_CHECK(content.size() >= sizeof(header), IoError, "{} has no header", path);
  std::memcpy(&header, content.data(), sizeof(header));
  const size_t room = content.size() - sizeof(header);
  PM_CHECK(header <= room, IoError, "the header of {} is longer than the file", path);

  std::map<std::string, Tensor> tensors;
  try {
    const char* begin = content.data() + sizeof(header);
    const auto json = nlohmann::json::parse(begin, begin + header);
    for (const auto& [name, entry] : json.items()) {
      if (name != "__metadata__") tensors.emplace(name, parse_tensor(name, entry, begin + header, room - header));
    }
  } catch (const nlohmann::json::exception& error) {
    throw IoError(fmt::format("{}: {}", path, error.what()));
  }
  return tensors;
}

double golden_item(const std::map<std::string, Tensor>& golden, const std::string& name) {
  return golden.at(name).to_host<double>().at(0);
}

void check_golden_op(Context& ctx, const std::string& file, DType dtype, const std::vector<std::string>& names,
                     const GoldenFn& fn) {
  INFO(file);
  const auto golden = load_golden(file);
  std::vector<Variable> inputs;
  for (const std::string& name : names) inputs.emplace_back(on(ctx, golden.at(name), dtype), true);
  const Variable out = fn(ctx, golden, inputs);
  const bool is_loss = golden.contains("loss");
  check_close(out.value(), golden.at(is_loss ? "loss" : "out"), tolerance(DType::f32), "value");
  backward(ctx, out, is_loss ? Tensor() : on(ctx, golden.at("dout"), dtype));
  for (size_t i = 0; i < names.size(); ++i) {
    check_close(inputs[i].grad(), golden.at("d" + names[i]), tolerance(DType::f32), "d" + names[i]);
  }
}

}  // namespace pm::test
