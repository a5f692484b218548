// Memory handed out from a few large segments, without calls of the driver: what a captured graph (Backend::capture) uses, whose
// addresses must stay its own for as long as it lives. Bookkeeping only: the segments may be memory of any device.
//
// The smallest free block that fits is taken and what is left of it stays free; freed neighbours join again. A freed block may be
// handed out at once, so all users must work in the order of one stream. Not thread-safe.
#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <set>
#include <utility>
#include <vector>

namespace pm {

class BlockArena {
 public:
  static constexpr size_t kAlignment = 256;

  // acquire gives a segment of that many bytes, aligned to kAlignment, or throws; release takes it back and does not throw.
  struct Source {
    std::function<void*(size_t)> acquire;
    std::function<void(void*, size_t)> release;
  };

  // Segments are made when needed, the first of at least first_bytes, the others of at least segment_bytes.
  BlockArena(Source source, size_t first_bytes, size_t segment_bytes);
  ~BlockArena();
  BlockArena(const BlockArena&) = delete;
  BlockArena& operator=(const BlockArena&) = delete;

  void* allocate(size_t bytes);  // bytes > 0
  void deallocate(void* pointer);
  bool owns(const void* pointer) const;
  int64_t live_blocks() const { return live_; }
  int64_t reserved_bytes() const;

 private:
  struct Block {
    size_t bytes;
    bool free;
    bool first;  // of its segment: what lies before it belongs to somebody else
  };
  using Blocks = std::map<uintptr_t, Block>;  // by address, so that neighbours are neighbours

  void add_segment(size_t bytes);

  Source source_;
  size_t first_bytes_, segment_bytes_;
  Blocks blocks_;
  std::set<std::pair<size_t, uintptr_t>> free_;  // by size, then address
  std::vector<std::pair<void*, size_t>> segments_;
  int64_t live_ = 0;
};

}  // namespace pm
