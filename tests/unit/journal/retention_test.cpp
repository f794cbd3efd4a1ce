// Goal: what is acknowledged does not stay in the file, and the file does not grow with the number
// of batches that went through it.
// Method: 10,000 small batches from submit to the last acknowledgement; a large one that is taken
// back; sizes of files.

#include "tests/support/temporary_directory.hpp"
#include "tests/unit/journal/histories.hpp"

#include <gtest/gtest.h>

#include <chrono>
#include <filesystem>
#include <thread>

namespace rollcast::journal {
namespace {

std::uintmax_t bytes_on_disk(const std::string& path) {
  std::error_code missing;
  const auto log = std::filesystem::file_size(path + "-wal", missing);
  return std::filesystem::file_size(path) + (missing ? 0 : log);
}

/// Everything that a batch of two responses writes.
void run_batch(sink& to, std::uint64_t n) {
  const batch_id b{n};
  to.write(batch_submitted{b, small_spec("key " + std::to_string(n), 2), 2 * n - 1, n});
  to.write(batch_started{b, "cpu-f32-v1", 1});
  for (std::uint64_t r = 0; r < 2; ++r) {
    to.write(edge_of(b, r, 0, 64));
    to.write(edge_of(b, r, 64, 64));
    to.write(response_finished{b, r, wire::finish_reason::stop});
  }
  to.write(batch_ended{b, {}});
  for (std::uint64_t s = 1; s <= 3; ++s)
    to.write(results_acknowledged{b, s});
}

TEST(journal_retention, ten_thousand_batches_fit_a_small_file) {
  const temporary_directory where;
  const auto path = (where / "j").string();
  std::uintmax_t most = 0;
  {
    auto all = journal::open({.path = path});
    ASSERT_TRUE(all) << all.error().detail;
    auto& keeper = *all->keeper;
    for (std::uint64_t n = 1; n <= 10'000; ++n) {
      run_batch(keeper, n);
      if (n > 256)
        keeper.write(batch_forgotten{{n - 256}});
      while (keeper.written() - keeper.durable() > 5'000)
        std::this_thread::sleep_for(std::chrono::milliseconds{1});
      if (n % 1'000 == 0)
        most = std::max(most, bytes_on_disk(path));
    }
    ASSERT_TRUE(settled(keeper));
    EXPECT_LT(keeper.health().bytes, 1u << 20);
  }
  EXPECT_LT(most, std::uintmax_t{80} << 20) << "log and database, at the most";
  EXPECT_LT(bytes_on_disk(path), std::uintmax_t{8} << 20);
  const auto all = journal::open({.path = path});
  ASSERT_TRUE(all) << all.error().detail;
  EXPECT_EQ(all->found.batches.size(), 256u);
  EXPECT_EQ(all->found.next_batch, 10'001u);
  EXPECT_TRUE(all->found.batches.front().spec.groups.empty());
}

TEST(journal_retention, the_file_shrinks_again) {
  const temporary_directory where;
  const auto path = (where / "j").string();
  auto all = journal::open({.path = path});
  ASSERT_TRUE(all) << all.error().detail;
  auto& keeper = *all->keeper;
  const batch_id b{1};
  constexpr std::uint64_t responses = 64;
  keeper.write(batch_submitted{b, small_spec("k", responses), 1, 1});
  keeper.write(batch_started{b, "p", 1});
  for (std::uint64_t r = 0; r < responses; ++r) {
    for (std::uint32_t at = 0; at < 65'536; at += 2'048)
      keeper.write(edge_of(b, r, at, 2'048));
    keeper.write(response_finished{b, r, wire::finish_reason::length});
  }
  ASSERT_TRUE(settled(keeper));
  const auto full = keeper.health().bytes;
  EXPECT_GT(full, responses * 65'536 * 12);
  EXPECT_LT(full, responses * 65'536 * 12 * 5 / 4) << "12 bytes a token, and little besides";
  keeper.write(batch_ended{b, {}});
  for (std::uint64_t s = 1; s <= responses + 1; ++s)
    keeper.write(results_acknowledged{b, s});
  ASSERT_TRUE(settled(keeper));
  const auto until = std::chrono::steady_clock::now() + std::chrono::seconds{30};
  while (std::filesystem::file_size(path) > std::uintmax_t{8} << 20
         && std::chrono::steady_clock::now() < until)
    std::this_thread::sleep_for(std::chrono::milliseconds{20});
  EXPECT_LE(std::filesystem::file_size(path), std::uintmax_t{8} << 20) << "while it is open";
  EXPECT_LT(keeper.health().bytes, 1u << 20);
}

} // namespace
} // namespace rollcast::journal
