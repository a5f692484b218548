#include "engine/core/block_arena.h"

#include <algorithm>
#include <cassert>
#include <iterator>

namespace pm {
namespace {

size_t rounded(size_t bytes) {
  return (bytes + BlockArena::kAlignment - 1) / BlockArena::kAlignment * BlockArena::kAlignment;
}

}  // namespace

BlockArena::BlockArena(Source source, size_t first_bytes, size_t segment_bytes)
    : source_(std::move(source)), first_bytes_(first_bytes), segment_bytes_(segment_bytes) {}

BlockArena::~BlockArena() {
  for (const auto& [pointer, bytes] : segments_) source_.release(pointer, bytes);
}

void BlockArena::add_segment(size_t bytes) {
  const size_t wanted =
      rounded(std::max(bytes, segments_.empty() ? std::max(first_bytes_, segment_bytes_) : segment_bytes_));
  void* const pointer = source_.acquire(wanted);
  segments_.emplace_back(pointer, wanted);
  const auto address = reinterpret_cast<uintptr_t>(pointer);
  blocks_[address] = {wanted, true, true};
  free_.emplace(wanted, address);
}

void* BlockArena::allocate(size_t bytes) {
  const size_t wanted = rounded(bytes);
  auto found = free_.lower_bound({wanted, 0});
  if (found == free_.end()) {
    add_segment(wanted);
    found = free_.lower_bound({wanted, 0});
  }
  const auto [size, address] = *found;
  free_.erase(found);
  Block& block = blocks_.at(address);
  block.free = false;
  if (size > wanted) {
    block.bytes = wanted;
    blocks_[address + wanted] = {size - wanted, true, false};
    free_.emplace(size - wanted, address + wanted);
  }
  ++live_;
  return reinterpret_cast<void*>(address);
}

void BlockArena::deallocate(void* pointer) {
  auto block = blocks_.find(reinterpret_cast<uintptr_t>(pointer));
  assert(block != blocks_.end() && !block->second.free);
  block->second.free = true;
  --live_;
  if (const auto next = std::next(block); next != blocks_.end() && next->second.free && !next->second.first) {
    free_.erase({next->second.bytes, next->first});
    block->second.bytes += next->second.bytes;
    blocks_.erase(next);
  }
  if (!block->second.first) {
    if (const auto before = std::prev(block); before->second.free) {
      free_.erase({before->second.bytes, before->first});
      before->second.bytes += block->second.bytes;
      blocks_.erase(block);
      block = before;
    }
  }
  free_.emplace(block->second.bytes, block->first);
}

bool BlockArena::owns(const void* pointer) const {
  const auto address = reinterpret_cast<uintptr_t>(pointer);
  return std::any_of(segments_.begin(), segments_.end(), [&](const auto& segment) {
    const auto begin = reinterpret_cast<uintptr_t>(segment.first);
    return begin <= address && address < begin + segment.second;
  });
}

int64_t BlockArena::reserved_bytes() const {
  int64_t bytes = 0;
  for (const auto& segment : segments_) bytes += static_cast<int64_t>(segment.second);
  return bytes;
}

}  // namespace pm
