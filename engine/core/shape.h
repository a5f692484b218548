// Shape of a contiguous tensor: up to six 64-bit sizes, the last one varies fastest.
#pragma once
#include <array>
#include <cstdint>
#include <initializer_list>
#include <string>

namespace pm {

class Shape {
 public:
  static constexpr int kMaxRank = 6;

  Shape() = default;  // rank 0: one element
  Shape(std::initializer_list<int64_t> sizes);
  template <typename Iterator>
  Shape(Iterator first, Iterator last) {
    for (; first != last; ++first) push_back(static_cast<int64_t>(*first));
  }

  int rank() const { return rank_; }
  // Size of one axis; a negative axis counts from the end. Throws ShapeError outside the rank.
  int64_t operator[](int axis) const;
  // Product of all sizes. Throws ShapeError when it does not fit 63 bits.
  int64_t numel() const;
  // Product of the sizes [first, last), 1 when empty.
  int64_t numel(int first, int last) const;
  void push_back(int64_t size);

  const int64_t* begin() const { return sizes_.data(); }
  const int64_t* end() const { return sizes_.data() + rank_; }
  bool operator==(const Shape& other) const;
  std::string str() const;  // "(2, 3, 5)"

 private:
  std::array<int64_t, kMaxRank> sizes_{};
  int rank_ = 0;
};

}  // namespace pm
