// Goal: a shared loop covers every item exactly once, whatever the team and the grain, and the team
// survives thousands of loops of any size.
// Method: counters per item; loops small and large in turn, more threads than processors included.

#include "engine/backend/thread_pool.hpp"

#include <gtest/gtest.h>

#include <atomic>
#include <vector>

namespace rollcast::test {

namespace {

TEST(thread_pool, covers_every_item_once) {
  for (const std::size_t threads : {1u, 2u, 3u, 7u}) {
    thread_pool pool{threads};
    for (const std::size_t items : {0u, 1u, 2u, 5u, 64u, 1001u})
      for (const std::size_t grain : {1u, 3u, 64u, 5000u}) {
        std::vector<std::atomic<int>> seen(items);
        pool.run(items, grain, [&](std::size_t begin, std::size_t end, std::size_t thread) {
          EXPECT_LE(end - begin, threads == 1 ? items : grain);
          EXPECT_LT(thread, threads);
          for (std::size_t i = begin; i < end; ++i)
            ++seen[i];
        });
        for (std::size_t i = 0; i < items; ++i)
          ASSERT_EQ(seen[i], 1) << threads << " threads, item " << i << " of " << items;
      }
  }
}

TEST(thread_pool, sees_what_the_loop_before_wrote) {
  thread_pool pool{4};
  std::vector<std::uint64_t> values(4096, 1);
  for (int round = 0; round < 3000; ++round)
    pool.run(values.size(), 256, [&](std::size_t begin, std::size_t end, std::size_t) {
      for (std::size_t i = begin; i < end; ++i)
        values[i] += values[i] % 7;
    });
  std::uint64_t expected = 1;
  for (int round = 0; round < 3000; ++round)
    expected += expected % 7;
  for (const auto value : values)
    ASSERT_EQ(value, expected);
}

TEST(thread_pool, takes_no_threads_as_one) {
  thread_pool pool{0};
  EXPECT_EQ(pool.size(), 1u);
}

} // namespace

} // namespace rollcast::test
