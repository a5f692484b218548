#include <algorithm>

#include "engine/core/block_arena.h"
#include "tests/support/test.h"

namespace pm::test {
namespace {

// Segments at made-up addresses, each right behind the one before it: they must not be joined.
struct FakeMemory {
  uintptr_t next = 1 << 20;
  std::vector<size_t> acquired;
  std::vector<size_t> released;

  BlockArena::Source source() {
    return {[this](size_t bytes) {
              acquired.push_back(bytes);
              next += bytes;
              return reinterpret_cast<void*>(next - bytes);
            },
            [this](void*, size_t bytes) { released.push_back(bytes); }};
  }
};

}  // namespace

TEST_CASE("an arena takes one segment while its blocks fit", "[cpu]") {
  FakeMemory memory;
  {
    BlockArena arena(memory.source(), 10'000, 1'000);
    void* const a = arena.allocate(1);
    void* const b = arena.allocate(257);
    CHECK(static_cast<char*>(b) - static_cast<char*>(a) == 256);
    CHECK(memory.acquired == std::vector<size_t>{10'240});
    CHECK(arena.live_blocks() == 2);
    CHECK(arena.owns(b));
    CHECK_FALSE(arena.owns(static_cast<char*>(a) + 10'240));
    arena.allocate(9'500);  // 9'472 bytes are left behind b
    CHECK(memory.acquired == std::vector<size_t>{10'240, 9'728});
    CHECK(static_cast<char*>(arena.allocate(5'000)) - static_cast<char*>(b) == 512);
    arena.allocate(10);
    CHECK(memory.acquired.size() == 2);
    CHECK(arena.reserved_bytes() == 10'240 + 9'728);
  }
  CHECK(memory.released == memory.acquired);
}

TEST_CASE("an arena joins freed neighbours, but not across segments", "[cpu]") {
  FakeMemory memory;
  BlockArena arena(memory.source(), 1'024, 1'024);
  std::vector<void*> blocks;
  for (int i = 0; i < 8; ++i) blocks.push_back(arena.allocate(256));  // two full segments, one behind the other
  REQUIRE(memory.acquired.size() == 2);
  for (const size_t i : {3, 5, 1, 0, 2, 7, 4, 6}) arena.deallocate(blocks[i]);
  CHECK(arena.live_blocks() == 0);
  arena.allocate(1'024);
  arena.allocate(1'024);
  CHECK(memory.acquired.size() == 2);
  arena.allocate(1'280);
  CHECK(memory.acquired.size() == 3);
}

TEST_CASE("an arena takes the smallest block that fits", "[cpu]") {
  FakeMemory memory;
  BlockArena arena(memory.source(), 256 * 16, 256);
  void* const large = arena.allocate(256 * 4);
  arena.allocate(256);
  void* const small = arena.allocate(256 * 2);
  arena.allocate(256 * 9);
  arena.deallocate(large);
  arena.deallocate(small);
  CHECK(arena.allocate(256 * 2) == small);
  CHECK(arena.allocate(256 * 3) == large);
}

TEST_CASE("blocks of an arena never overlap", "[cpu]") {
  FakeMemory memory;
  BlockArena arena(memory.source(), 100'000, 20'000);
  std::vector<std::pair<uintptr_t, size_t>> live;
  const RngState draw{3, 0};
  for (int64_t i = 0; i < 4'000; ++i) {
    if (!live.empty() && uniform_at(draw, 2 * i) < 0.45) {
      const auto at =
          live.begin() + static_cast<int64_t>(uniform_at(draw, 2 * i + 1) * static_cast<double>(live.size()));
      arena.deallocate(reinterpret_cast<void*>(at->first));
      live.erase(at);
    } else {
      const auto bytes = static_cast<size_t>(1.0 + 3'000.0 * uniform_at(draw, 2 * i + 1));
      live.emplace_back(reinterpret_cast<uintptr_t>(arena.allocate(bytes)), bytes);
    }
  }
  CHECK(arena.live_blocks() == static_cast<int64_t>(live.size()));
  std::sort(live.begin(), live.end());
  int64_t overlaps = 0, outside = 0;
  for (size_t i = 0; i + 1 < live.size(); ++i) overlaps += live[i].first + live[i].second > live[i + 1].first ? 1 : 0;
  for (const auto& [address, bytes] : live) {
    outside += arena.owns(reinterpret_cast<void*>(address)) && arena.owns(reinterpret_cast<void*>(address + bytes - 1))
                   ? 0
                   : 1;
  }
  CHECK(overlaps == 0);
  CHECK(outside == 0);
}

}  // namespace pm::test
