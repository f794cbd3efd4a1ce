// Goal: records become durable in order, many with one commit, and writing never waits for a disk.
// Method: count commits and what they tell; look at a journal while it is written.

#include "cluster/journal/inspect.hpp"
#include "tests/support/temporary_directory.hpp"
#include "tests/unit/journal/histories.hpp"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <mutex>
#include <thread>
#include <vector>

namespace rollcast::journal {
namespace {

using namespace std::chrono_literals;

TEST(journal_write, tells_of_each_commit_in_order_and_gathers) {
  const temporary_directory where;
  auto all = journal::open({.path = (where / "j").string(), .gather = 20ms});
  ASSERT_TRUE(all) << all.error().detail;
  std::mutex mutex;
  std::vector<std::uint64_t> told;
  all->keeper->on_commit([&](std::uint64_t durable, double seconds) {
    const std::lock_guard guard{mutex};
    told.push_back(durable);
    EXPECT_GT(seconds, 0);
    EXPECT_LT(seconds, 10);
    EXPECT_EQ(durable, all->keeper->durable());
  });
  history h{5};
  constexpr std::uint64_t records = 2'000;
  for (std::uint64_t i = 1; i <= records; ++i) {
    all->keeper->write(h.next());
    ASSERT_EQ(all->keeper->written(), i);
  }
  ASSERT_TRUE(settled(*all->keeper));
  const std::lock_guard guard{mutex};
  ASSERT_FALSE(told.empty());
  EXPECT_TRUE(std::is_sorted(told.begin(), told.end()));
  EXPECT_EQ(told.back(), records);
  EXPECT_LT(told.size(), records / 20) << "no groups";
}

TEST(journal_write, an_idle_journal_commits_the_first_at_once) {
  const temporary_directory where;
  auto all = journal::open({.path = (where / "j").string(), .gather = 5s});
  ASSERT_TRUE(all) << all.error().detail;
  const auto began = std::chrono::steady_clock::now();
  all->keeper->write(epoch_promised{1});
  ASSERT_TRUE(settled(*all->keeper));
  EXPECT_LT(std::chrono::steady_clock::now() - began, 4s);
}

TEST(journal_write, takes_records_of_many_threads) {
  const temporary_directory where;
  const auto path = (where / "j").string();
  {
    auto all = journal::open({.path = path});
    ASSERT_TRUE(all) << all.error().detail;
    std::vector<std::jthread> threads;
    for (std::uint64_t t = 0; t < 4; ++t)
      threads.emplace_back([&, t] {
        for (std::uint64_t i = 0; i < 500; ++i)
          all->keeper->write(epoch_promised{t * 500 + i});
      });
    threads.clear();
    EXPECT_EQ(all->keeper->written(), 2'000u);
  }
  const auto all = journal::open({.path = path});
  ASSERT_TRUE(all) << all.error().detail;
  EXPECT_EQ(all->found.epoch_promised, 1'999u);
}

TEST(journal_write, can_be_looked_at_meanwhile) {
  const temporary_directory where;
  const auto path = (where / "j").string();
  auto all = journal::open({.path = path, .gather = 1ms});
  ASSERT_TRUE(all) << all.error().detail;
  std::atomic<bool> over{false};
  std::jthread writes{[&] {
    history h{9};
    while (!over) {
      all->keeper->write(h.next());
      if (h.written() % 64 == 0)
        std::this_thread::sleep_for(1ms);
    }
  }};
  for (int i = 0; i < 50; ++i) {
    const auto seen = inspect(path);
    ASSERT_TRUE(seen) << seen.error().detail;
    EXPECT_EQ(seen->schema, 3u);
    EXPECT_EQ(seen->generation, 1u);
    EXPECT_EQ(seen->writer, ::getpid());
    for (const auto& batch : seen->batches) {
      EXPECT_LE(batch.finished, batch.responses);
      EXPECT_LE(batch.acknowledged, batch.responses + 1);
    }
  }
  over = true;
  writes.join();
  EXPECT_TRUE(settled(*all->keeper));
  EXPECT_TRUE(all->keeper->health().takes_batches) << all->keeper->health().why_not;
}

TEST(journal_write, says_when_its_bounds_are_reached) {
  const temporary_directory where;
  auto all =
    journal::open({.path = (where / "j").string(), .bytes_max = 200'000, .pending_bytes_max = 1});
  ASSERT_TRUE(all) << all.error().detail;
  auto& keeper = *all->keeper;
  EXPECT_TRUE(keeper.health().takes_batches) << keeper.health().why_not;
  const batch_id b{1};
  keeper.write(batch_submitted{b, small_spec("k", 1), 1, 1});
  keeper.write(batch_started{b, "p", 1});
  for (std::uint32_t i = 0; i < 10; ++i)
    keeper.write(edge_of(b, 0, i * 4'000, 4'000));
  // Two commits at least are still to come, so something is pending.
  EXPECT_NE(keeper.health().why_not.find("not on disk yet, limit 1"), std::string::npos);
  ASSERT_TRUE(settled(keeper));
  const auto full = keeper.health();
  EXPECT_FALSE(full.takes_batches);
  EXPECT_GT(full.bytes, 200'000u);
  EXPECT_NE(full.why_not.find("limit 200000"), std::string::npos) << full.why_not;
  keeper.write(response_finished{b, 0, wire::finish_reason::stop});
  keeper.write(batch_ended{b, {}});
  keeper.write(results_acknowledged{b, 2});
  ASSERT_TRUE(settled(keeper));
  EXPECT_TRUE(keeper.health().takes_batches) << keeper.health().why_not;
}

} // namespace
} // namespace rollcast::journal
