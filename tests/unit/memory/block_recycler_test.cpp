// Goal: large blocks come and go without fresh memory for each, and what nobody wants goes back.
// Method: addresses of blocks that are put back and taken, sizes at the edges, threads, and what no
// machine has.

#include "engine/memory/block_recycler.hpp"
#include "engine/memory/kv_bytes.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

namespace rollcast {
namespace {

using namespace std::chrono_literals;

constexpr std::size_t mib = std::size_t{1} << 20;

TEST(block_recycler, hands_a_block_on_to_the_next_of_about_its_size) {
  block_recycler sut;
  const auto first = sut.take(2 * mib);
  sut.put_back(first);
  EXPECT_EQ(sut.take(2 * mib - 100'000), first);
  sut.put_back(first);
  const auto small = sut.take(mib / 2); // a much larger one is better kept
  EXPECT_NE(small, first);
  const auto larger = sut.take(3 * mib);
  EXPECT_NE(larger, first);
  sut.put_back(larger);
  EXPECT_EQ(sut.take(2 * mib), first) << "the smallest that is large enough";
  for (const auto block : {first, small})
    sut.put_back(block);
}

TEST(block_recycler, gives_aligned_memory_of_every_size) {
  block_recycler sut;
  std::vector<std::pair<std::byte*, std::size_t>> blocks;
  for (const std::size_t bytes : {0ul, 1ul, 4'032ul, 4'033ul, 65'536ul, 5 * mib + 7}) {
    blocks.emplace_back(static_cast<std::byte*>(sut.take(bytes)), bytes);
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(blocks.back().first) % 64, 0u);
    std::memset(blocks.back().first, static_cast<int>(blocks.size()), bytes);
  }
  for (std::size_t i = 0; i < blocks.size(); ++i)
    EXPECT_TRUE(std::all_of(blocks[i].first, blocks[i].first + blocks[i].second,
                            [i](std::byte b) { return b == static_cast<std::byte>(i + 1); }));
  for (const auto& [block, bytes] : blocks)
    sut.put_back(block);
  sut.put_back(nullptr);
  EXPECT_GE(sut.waiting(), 5 * mib);
}

TEST(block_recycler, gives_back_what_nobody_wanted_for_so_long) {
  block_recycler sut;
  const auto old = sut.take(mib);
  const auto fresh = sut.take(4 * mib);
  sut.put_back(old);
  std::this_thread::sleep_for(1'200ms);
  sut.put_back(fresh);
  EXPECT_EQ(sut.give_back(1h), 0u);
  const auto given = sut.give_back(1s);
  EXPECT_TRUE(given >= mib && given < 2 * mib) << given;
  EXPECT_EQ(sut.take(4 * mib), fresh);
  sut.put_back(fresh);
  EXPECT_GE(sut.give_back(0ms), 4 * mib);
  EXPECT_EQ(sut.waiting(), 0u);
}

TEST(block_recycler, refuses_what_no_machine_has) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "a sanitizer ends the process instead";
#endif
  block_recycler sut;
  sut.put_back(sut.take(mib));
  EXPECT_THROW(sut.take(SIZE_MAX - 100), std::bad_alloc);
  EXPECT_THROW(sut.take(std::size_t{1} << 50), std::bad_alloc);
  EXPECT_EQ(sut.waiting(), 0u) << "what waited would have been given up for it";
}

TEST(block_recycler, keeps_no_more_than_its_most) {
  block_recycler sut;
  std::vector<void*> blocks;
  for (int i = 0; i < 5; ++i)
    blocks.push_back(sut.take(60 * mib)); // of which nothing is touched
  for (const auto block : blocks)
    sut.put_back(block);
  EXPECT_LE(sut.waiting(), block_recycler::waiting_max);
  EXPECT_GE(sut.waiting(), 3 * 60 * mib);
}

TEST(block_recycler, serves_threads) {
  block_recycler sut;
  std::vector<std::jthread> threads;
  for (int t = 0; t < 4; ++t)
    threads.emplace_back([&sut, t] {
      for (std::size_t i = 0; i < 200; ++i) {
        const auto block = static_cast<int*>(sut.take(10'000 + i * 1'000));
        std::fill_n(block, 2'500, t);
        EXPECT_TRUE(std::all_of(block, block + 2'500, [t](int x) { return x == t; }));
        sut.put_back(block);
        if (i % 50 == 0)
          sut.give_back(0ms);
      }
    });
}

TEST(kv_bytes, are_a_vector_that_leaves_what_it_grows_by_as_it_is) {
  kv_bytes bytes(5'000, std::byte{3});
  const auto copy = bytes;
  bytes.resize(6'000);
  EXPECT_TRUE(std::equal(copy.begin(), copy.end(), bytes.begin()));
  bytes = kv_bytes{};
  bytes.resize(5'000); // in the same memory
  EXPECT_EQ(std::count(bytes.begin(), bytes.end(), std::byte{3}), 5'000);
}

} // namespace
} // namespace rollcast
