#include "engine/core/shape.h"

#include <algorithm>

#include "engine/core/check.h"

namespace pm {

Shape::Shape(std::initializer_list<int64_t> sizes) {
  for (const int64_t size : sizes) push_back(size);
}

void Shape::push_back(int64_t size) {
  PM_CHECK(size >= 0, ShapeError, "a tensor size must not be negative, got {}", size);
  PM_CHECK(rank_ < kMaxRank, ShapeError, "a tensor has at most {} axes", kMaxRank);
  sizes_[static_cast<size_t>(rank_++)] = size;
}

int64_t Shape::operator[](int axis) const {
  const int wrapped = axis < 0 ? axis + rank_ : axis;
  PM_CHECK(wrapped >= 0 && wrapped < rank_, ShapeError, "axis {} is outside a tensor of shape {}", axis, str());
  return sizes_[static_cast<size_t>(wrapped)];
}

int64_t Shape::numel() const { return numel(0, rank_); }

int64_t Shape::numel(int first, int last) const {
  if (std::any_of(begin() + first, begin() + last, [](int64_t size) { return size == 0; })) return 0;
  int64_t product = 1;
  for (int axis = first; axis < last; ++axis) {
    PM_CHECK(!__builtin_mul_overflow(product, (*this)[axis], &product), ShapeError,
             "a tensor of shape {} has more than 2^63 elements", str());
  }
  return product;
}

bool Shape::operator==(const Shape& other) const { return std::equal(begin(), end(), other.begin(), other.end()); }

std::string Shape::str() const { return fmt::format("({})", fmt::join(begin(), end(), ", ")); }

}  // namespace pm
