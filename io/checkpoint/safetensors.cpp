#include "io/checkpoint/safetensors.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>

#include "engine/core/check.h"
#include "io/data/atomic_file.h"
#include "io/data/file.h"

namespace pm::io {
namespace {

static_assert(std::endian::native == std::endian::little, "tensor bytes are copied as they are");

constexpr int64_t kLengthBytes = 8;
constexpr int64_t kMaxHeaderBytes = 100'000'000;
constexpr int64_t kHeaderAlignment = 8;
constexpr size_t kMaxNameBytes = 4096;
constexpr const char* kMetadata = "__metadata__";

struct DTypeName {
  const char* name;
  DType dtype;
};
constexpr DTypeName kDTypes[] = {
    {"F32", DType::f32}, {"F64", DType::f64}, {"BF16", DType::bf16}, {"I64", DType::i64}, {"U8", DType::u8}};

std::optional<DType> dtype_named(const std::string& name) {
  for (const DTypeName& known : kDTypes) {
    if (name == known.name) return known.dtype;
  }
  return std::nullopt;
}

const char* name_of(DType dtype) {
  for (const DTypeName& known : kDTypes) {
    if (dtype == known.dtype) return known.name;
  }
  return "?";
}

// Takes the header event by event, so nothing but the entries themselves is kept and the first mistake ends the
// reading. Depth 1 is the outer object, 2 a tensor or the metadata, 3 a list of numbers.
class HeaderReader {
 public:
  using number_integer_t = nlohmann::json::number_integer_t;
  using number_unsigned_t = nlohmann::json::number_unsigned_t;
  using number_float_t = nlohmann::json::number_float_t;
  using string_t = nlohmann::json::string_t;
  using binary_t = nlohmann::json::binary_t;

  explicit HeaderReader(const std::string& path) : path_(path) {}
  SafetensorsHeader take() { return std::move(header_); }

  bool null() { return unexpected("null"); }
  bool boolean(bool) { return unexpected("true or false"); }
  bool binary(binary_t&) { return unexpected("binary data"); }
  bool number_float(number_float_t, const string_t& text) { return unexpected("the number " + text); }
  bool number_integer(number_integer_t value) { return unexpected(fmt::format("the number {}", value)); }

  bool number_unsigned(number_unsigned_t value) {
    if (depth_ != 3) return unexpected(fmt::format("the number {}", value));
    if (value > static_cast<uint64_t>(INT64_MAX)) return unexpected(fmt::format("the number {}", value));
    std::vector<int64_t>& list = field_ == "shape" ? sizes_ : offsets_;
    const size_t limit = field_ == "shape" ? static_cast<size_t>(Shape::kMaxRank) : 2;
    if (list.size() == limit) fail("'{}' has more than {} numbers", field_, limit);
    list.push_back(static_cast<int64_t>(value));
    return true;
  }

  bool string(string_t& text) {
    if (depth_ == 2 && entry_ == kMetadata) {
      header_.metadata[field_] = text;
    } else if (depth_ == 2 && field_ == "dtype") {
      dtype_ = dtype_named(text);
      if (!dtype_) fail("dtype '{}' is not supported; F32, F64, BF16, I64 and U8 are", text.substr(0, 40));
    } else {
      return unexpected("the text '" + text.substr(0, 40) + "'");
    }
    return true;
  }

  bool start_object(size_t) {
    if (depth_ >= 2) return unexpected("an object");
    ++depth_;
    fields_.clear();
    sizes_.clear();
    offsets_.clear();
    dtype_.reset();
    return true;
  }

  bool key(string_t& name) {
    if (name.size() > kMaxNameBytes) fail("a name has {} bytes, at most {} are taken", name.size(), kMaxNameBytes);
    if (depth_ == 1) {
      entry_ = name;
      field_.clear();
      if (!entries_.insert(name).second) fail("the name occurs twice");
      return true;
    }
    if (!fields_.insert(name).second) fail("the key '{}' occurs twice", name);
    const bool known = name == "dtype" || name == "shape" || name == "data_offsets";
    if (entry_ != kMetadata && !known) fail("unknown key '{}'; dtype, shape and data_offsets are expected", name);
    field_ = name;
    return true;
  }

  bool end_object() {
    --depth_;
    if (depth_ == 1 && entry_ != kMetadata) add_entry();
    return true;
  }

  bool start_array(size_t) {
    if (depth_ != 2 || entry_ == kMetadata || field_ == "dtype") return unexpected("a list");
    ++depth_;
    return true;
  }

  bool end_array() {
    --depth_;
    return true;
  }

  bool parse_error(size_t position, const std::string& token, const nlohmann::json::exception& error) {
    const bool foreign = position <= 1;
    throw IoError(fmt::format("{}: the safetensors header is not valid JSON at byte {}{}{}", path_,
                              kLengthBytes + static_cast<int64_t>(position),
                              foreign ? " (this is probably no safetensors file)" : near(token), reason(error)));
  }

 private:
  static std::string near(const std::string& token) {
    return token.empty() ? "" : fmt::format(" near '{}'", token.substr(token.size() > 20 ? token.size() - 20 : 0));
  }
  // nlohmann prefixes its own error number and position.
  static std::string reason(const nlohmann::json::exception& error) {
    const std::string text = error.what();
    const size_t cut = text.rfind("; expected ");
    return cut == std::string::npos ? "" : text.substr(cut);
  }

  template <typename... Values>
  [[noreturn]] void fail(fmt::format_string<Values...> format, Values&&... values) const {
    throw IoError(fmt::format("{}: safetensors header{}: {}", path_,
                              entry_.empty() ? "" : fmt::format(", tensor '{}'", entry_.substr(0, 100)),
                              fmt::format(format, std::forward<Values>(values)...)));
  }

  bool unexpected(const std::string& what) const {
    if (depth_ == 0) fail("must be a JSON object of tensors, not {}", what);
    if (depth_ == 1) fail("must be an object with dtype, shape and data_offsets, not {}", what);
    if (entry_ == kMetadata) fail("the value of '{}' must be text, not {}", field_, what);
    if (field_ == "dtype") fail("dtype must be a text such as \"F32\", not {}", what);
    fail("'{}' must be a list of whole numbers from 0, not {}", field_, depth_ == 3 ? "one with " + what : what);
  }

  void add_entry() {
    for (const char* needed : {"dtype", "shape", "data_offsets"}) {
      if (!fields_.contains(needed)) fail("'{}' is missing", needed);
    }
    if (offsets_.size() != 2) fail("data_offsets must be [begin, end], got {} numbers", offsets_.size());
    SafetensorsEntry entry{entry_, *dtype_, Shape(sizes_.begin(), sizes_.end()), offsets_[0], offsets_[1]};
    if (entry.begin > entry.end) fail("data_offsets [{}, {}] end before they begin", entry.begin, entry.end);
    int64_t bytes = static_cast<int64_t>(size_of(entry.dtype));
    const bool empty = std::find(sizes_.begin(), sizes_.end(), 0) != sizes_.end();
    for (const int64_t size : sizes_) {
      if (!empty && __builtin_mul_overflow(bytes, size, &bytes))
        fail("shape {} has more than 2^63 bytes", entry.shape.str());
    }
    if (empty) bytes = 0;
    if (bytes != entry.end - entry.begin) {
      fail("{} of shape {} needs {} bytes, data_offsets [{}, {}] hold {}", name_of(entry.dtype), entry.shape.str(),
           bytes, entry.begin, entry.end, entry.end - entry.begin);
    }
    header_.tensors.push_back(std::move(entry));
  }

  const std::string& path_;
  SafetensorsHeader header_;
  int depth_ = 0;
  std::string entry_, field_;
  std::set<std::string> entries_, fields_;
  std::vector<int64_t> sizes_, offsets_;
  std::optional<DType> dtype_;
};

// Sorts the tensors by offset, makes the offsets absolute, and checks that they tile the data exactly.
void check_layout(const std::string& path, SafetensorsHeader& header, int64_t data_start, int64_t file_size) {
  std::sort(header.tensors.begin(), header.tensors.end(), [](const SafetensorsEntry& a, const SafetensorsEntry& b) {
    return std::tie(a.begin, a.end, a.name) < std::tie(b.begin, b.end, b.name);
  });
  int64_t next = 0;
  for (SafetensorsEntry& entry : header.tensors) {
    PM_CHECK(entry.begin >= next, IoError,
             "{}: tensor '{}' begins at data byte {} and overlaps the one that ends at {}", path, entry.name,
             entry.begin, next);
    PM_CHECK(entry.begin == next, IoError,
             "{}: tensor '{}' begins at data byte {}, but the one before ends at {}: a gap", path, entry.name,
             entry.begin, next);
    next = entry.end;
    PM_CHECK(next <= file_size - data_start, IoError,
             "{}: tensor '{}' ends at data byte {}, the file holds {} bytes of data: it is cut off", path, entry.name,
             next, file_size - data_start);
    entry.begin += data_start;
    entry.end += data_start;
  }
  PM_CHECK(next == file_size - data_start, IoError,
           "{}: the tensors end at data byte {}, but the file holds {} bytes of data", path, next,
           file_size - data_start);
}

SafetensorsHeader read_header(const InputFile& file) {
  const std::string& path = file.path();
  PM_CHECK(file.size() >= kLengthBytes, IoError,
           "{}: has {} bytes, a safetensors file begins with {} bytes of header length", path, file.size(),
           kLengthBytes);
  uint64_t length = 0;
  file.read(0, &length, kLengthBytes);
  PM_CHECK(length <= static_cast<uint64_t>(kMaxHeaderBytes), IoError,
           "{}: the header length is {}, at most {} is taken (this is probably no safetensors file)", path, length,
           kMaxHeaderBytes);
  PM_CHECK(length <= static_cast<uint64_t>(file.size() - kLengthBytes), IoError,
           "{}: the header length is {}, but only {} bytes follow: the file is cut off", path, length,
           file.size() - kLengthBytes);
  std::string text(static_cast<size_t>(length), '\0');
  file.read(kLengthBytes, text.data(), static_cast<int64_t>(length));
  PM_CHECK(!text.empty() && text[0] == '{', IoError, "{}: the safetensors header must begin with '{{'", path);
  HeaderReader reader(path);
  nlohmann::json::sax_parse(text, &reader);
  SafetensorsHeader header = reader.take();
  check_layout(path, header, kLengthBytes + static_cast<int64_t>(length), file.size());
  return header;
}

struct NamedTensor {
  const std::string* name;
  const Tensor* tensor;
};

// Wide element types first, so that each tensor begins at a multiple of its element size.
std::vector<NamedTensor> writing_order(const std::string& path, const std::map<std::string, Tensor>& tensors) {
  std::vector<NamedTensor> order;
  for (const auto& [name, tensor] : tensors) {
    PM_CHECK(tensor.defined(), IoError, "{}: tensor '{}' is undefined", path, name);
    PM_CHECK(name != kMetadata && name.size() <= kMaxNameBytes, IoError, "{}: a tensor cannot be named '{}'", path,
             name.substr(0, 100));
    order.push_back({&name, &tensor});
  }
  std::stable_sort(order.begin(), order.end(), [](const NamedTensor& a, const NamedTensor& b) {
    return size_of(a.tensor->dtype()) > size_of(b.tensor->dtype());
  });
  return order;
}

std::string header_text(const std::string& path, const std::vector<NamedTensor>& order,
                        const std::map<std::string, std::string>& metadata) {
  auto header = nlohmann::ordered_json::object();
  if (!metadata.empty()) header[kMetadata] = metadata;
  int64_t begin = 0;
  for (const auto& [name, tensor] : order) {
    const int64_t end = begin + static_cast<int64_t>(tensor->bytes());
    header[*name] = {{"dtype", name_of(tensor->dtype())},
                     {"shape", std::vector<int64_t>(tensor->shape().begin(), tensor->shape().end())},
                     {"data_offsets", {begin, end}}};
    begin = end;
  }
  std::string text;
  try {
    text = header.dump();
  } catch (const nlohmann::json::exception&) {
    throw IoError(fmt::format("{}: tensor names and metadata must be UTF-8 text", path));
  }
  text.append(
      static_cast<size_t>((kHeaderAlignment - static_cast<int64_t>(text.size()) % kHeaderAlignment) % kHeaderAlignment),
      ' ');
  PM_CHECK(static_cast<int64_t>(text.size()) <= kMaxHeaderBytes, IoError,
           "{}: the header has {} bytes, at most {} are readable", path, text.size(), kMaxHeaderBytes);
  return text;
}

}  // namespace

SafetensorsHeader read_safetensors_header(const std::string& path) { return read_header(InputFile(path)); }

std::map<std::string, Tensor> read_safetensors(Context& host, const std::string& path) {
  PM_CHECK(host.device().is_cpu(), DeviceError, "safetensors are read to the CPU, got a context on {}",
           host.device().str());
  const InputFile file(path);
  std::map<std::string, Tensor> tensors;
  for (const SafetensorsEntry& entry : read_header(file).tensors) {
    Tensor tensor = Tensor::empty(host, entry.shape, entry.dtype);
    file.read(entry.begin, tensor.raw(), entry.end - entry.begin);
    tensors.emplace(entry.name, std::move(tensor));
  }
  return tensors;
}

void write_safetensors(const std::string& path, const std::map<std::string, Tensor>& tensors,
                       const std::map<std::string, std::string>& metadata, FileOps& ops) {
  const std::vector<NamedTensor> order = writing_order(path, tensors);
  const std::string header = header_text(path, order, metadata);
  const uint64_t length = header.size();
  AtomicFile file(path, ops);
  file.write(&length, sizeof(length));
  file.write(header);
  std::vector<std::byte> bytes;
  for (const auto& [name, tensor] : order) {
    if (tensor->bytes() == 0) continue;
    if (tensor->device().is_cpu()) {
      file.write(tensor->raw(), tensor->bytes());
    } else {
      bytes.resize(tensor->bytes());
      tensor->copy_to_host(bytes.data());
      file.write(bytes.data(), bytes.size());
    }
  }
  file.commit();
}

}  // namespace pm::io
