// Goal: a process that works for weeks holds what it uses, and streams of large blocks are fast.
// Method: what glibc says that it has mapped, before, with and after large blocks.

#include "engine/memory/heap.hpp"

#include <gtest/gtest.h>
#include <malloc.h>

#include <cstddef>
#include <cstdlib>
#include <memory>
#include <vector>

namespace rollcast {
namespace {

using namespace std::chrono_literals;

constexpr std::size_t kib = 1 << 10;

struct freed {
  void operator()(void* block) const { std::free(block); }
};
using block = std::unique_ptr<void, freed>;

block take(std::size_t bytes) {
  return block{std::malloc(bytes)};
}

std::size_t mapped() {
  return ::mallinfo2().hblkhd;
}

class heap : public testing::Test {
protected:
  void SetUp() override {
    settle_heap();
    const auto before = mapped();
    const auto large = take(1024 * kib);
    if (mapped() == before)
      GTEST_SKIP() << "another allocator than glibc's";
  }
};

TEST_F(heap, maps_large_blocks_also_after_others_were_freed) {
  const auto before = mapped();
  for (const auto size : {200 * kib, 3'000 * kib, 20'000 * kib}) // glibc would learn from each
    take(size);
  EXPECT_EQ(mapped(), before);
  std::vector<block> blocks;
  for (int i = 0; i < 8; ++i)
    blocks.push_back(take(3'000 * kib));
  EXPECT_GE(mapped(), before + 7 * 3'000 * kib) << "one may fit what the heap has free";
  blocks.clear();
  EXPECT_EQ(mapped(), before);
}

TEST_F(heap, keeps_them_while_one_asks_and_gives_back_after_a_pause) {
  const auto before = mapped();
  {
    const kept_heap first{64u << 20};
    const auto second = std::make_unique<kept_heap>(64u << 20);
    const auto large = take(1024 * kib);
    EXPECT_EQ(mapped(), before);
    EXPECT_FALSE(give_back_heap(0ms)) << "it is held";
  }
  EXPECT_FALSE(give_back_heap(1h)) << "the next may come soon";
  EXPECT_EQ((take(1024 * kib), mapped()), before);
  const auto held = ::mallinfo2().arena;
  EXPECT_TRUE(give_back_heap(0ms));
  EXPECT_FALSE(give_back_heap(0ms)) << "nothing is kept";
  EXPECT_LT(::mallinfo2().arena, held);
  const auto large = take(1024 * kib);
  EXPECT_GT(mapped(), before);
}

} // namespace
} // namespace rollcast
