#include "io/data/npy.h"

#include <bit>

#include "engine/core/check.h"
#include "io/data/atomic_file.h"

namespace pm::io {

static_assert(std::endian::native == std::endian::little, "values are written as they are in memory");

void write_npy(const std::string& path, const std::vector<float>& values, int64_t rows, int64_t columns) {
  int64_t count = 0;
  PM_CHECK(rows >= 0 && columns >= 0 && !__builtin_mul_overflow(rows, columns, &count) &&
               count == static_cast<int64_t>(values.size()),
           ShapeError, "{}: {} values do not fill {} x {}", path, values.size(), rows, columns);
  constexpr size_t kPreamble = 10, kAlignment = 64;  // magic, version and header length; start of the values
  std::string header = fmt::format("{{'descr': '<f4', 'fortran_order': False, 'shape': ({}, {}), }}", rows, columns);
  const size_t total = (kPreamble + header.size() + 1 + kAlignment - 1) / kAlignment * kAlignment;
  header.append(total - kPreamble - header.size() - 1, ' ');
  header.push_back('\n');

  std::string preamble("\x93NUMPY\x01\x00", 8);
  preamble.push_back(static_cast<char>(header.size() & 0xff));
  preamble.push_back(static_cast<char>(header.size() >> 8));
  AtomicFile file(path);
  file.write(preamble);
  file.write(header);
  file.write(values.data(), values.size() * sizeof(float));
  file.commit();
}

}  // namespace pm::io
