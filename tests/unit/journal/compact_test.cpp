// Goal: inspecting changes nothing, compacting keeps all that is known and gives space back.
// Method: a journal with holes, before and after; read-only directories; a damaged file.

#include "cluster/journal/inspect.hpp"
#include "tests/support/temporary_directory.hpp"
#include "tests/unit/journal/histories.hpp"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <filesystem>
#include <fstream>
#include <iterator>

namespace rollcast::journal {
namespace {

/// Twenty batches with a large result each, every second one collected.
void fill(const std::string& path) {
  auto all = journal::open({.path = path});
  ASSERT_TRUE(all) << all.error().detail;
  auto& keeper = *all->keeper;
  for (std::uint64_t n = 1; n <= 20; ++n) {
    const batch_id b{n};
    keeper.write(batch_submitted{b, small_spec("key " + std::to_string(n), 2), 2 * n - 1, n});
    keeper.write(batch_started{b, "p", 1});
    keeper.write(edge_of(b, 0, 0, 5'000));
    keeper.write(response_finished{b, 0, wire::finish_reason::stop});
  }
  for (std::uint64_t n = 2; n <= 20; n += 2) {
    const batch_id b{n};
    keeper.write(response_finished{b, 1, wire::finish_reason::cancelled});
    keeper.write(batch_failed{b, {errc::cancelled, "why", {}}});
    keeper.write(batch_ended{b, {}});
    if (n > 2)
      keeper.write(results_acknowledged{b, 3});
  }
  keeper.write(epoch_decided{4, {1, 2}});
  keeper.write(epoch_promised{5});
}

TEST(journal_inspect, tells_what_is_there) {
  const temporary_directory where;
  const auto path = (where / "j").string();
  fill(path);
  const auto seen = inspect(path);
  ASSERT_TRUE(seen) << seen.error().detail;
  EXPECT_EQ(seen->schema, 3u);
  EXPECT_EQ(seen->generation, 1u);
  EXPECT_EQ(seen->writer, 0);
  EXPECT_EQ(seen->epoch_promised, 5u);
  EXPECT_EQ(seen->weights, (epoch_decided{4, {1, 2}}));
  EXPECT_FALSE(seen->identity);
  EXPECT_GT(seen->file_bytes, 11u * 5'000 * 12);
  ASSERT_EQ(seen->batches.size(), 20u);
  EXPECT_EQ(seen->batches[0].key, "key 1");
  EXPECT_EQ(seen->batches[0].state, "running");
  EXPECT_EQ(seen->batches[0].finished, 1u);
  EXPECT_EQ(seen->batches[0].responses, 2u);
  EXPECT_EQ(seen->batches[0].tokens, 5'000u);
  EXPECT_EQ(seen->batches[1].state, "failed");
  EXPECT_EQ(seen->batches[3].state, "collected");
  EXPECT_EQ(seen->batches[3].acknowledged, 3u);
  EXPECT_EQ(seen->batches[3].tokens, 0u);
  EXPECT_FALSE(inspect((where / "none").string()));
}

TEST(journal_inspect, changes_nothing) {
  const temporary_directory where;
  const auto path = (where / "j").string();
  fill(path);
  const auto time = std::filesystem::last_write_time(path);
  ASSERT_TRUE(inspect(path));
  EXPECT_EQ(std::filesystem::last_write_time(path), time);
  EXPECT_EQ(journal::open({.path = path})->found.generation, 2u);
}

TEST(journal_compact, keeps_everything_and_gives_space_back) {
  const temporary_directory where;
  const auto path = (where / "j").string();
  fill(path);
  std::string before;
  {
    const auto all = journal::open({.path = path});
    ASSERT_TRUE(all) << all.error().detail;
    before = text_of(all->found);
  }
  const auto done = compact(path);
  ASSERT_TRUE(done) << done.error().detail;
  EXPECT_LT(done->bytes_after, done->bytes_before);
  EXPECT_EQ(done->bytes_after, std::filesystem::file_size(path));
  EXPECT_EQ(inspect(path)->free_bytes, 0u);
  const auto all = journal::open({.path = path});
  ASSERT_TRUE(all) << all.error().detail;
  EXPECT_EQ(text_of(all->found), before);
  EXPECT_EQ(all->found.generation, 3u) << "compacting is no scheduler";
}

TEST(journal_compact, leaves_a_damaged_file_as_it_is) {
  const temporary_directory where;
  const auto path = (where / "j").string();
  fill(path);
  std::string bytes;
  {
    std::ifstream in{path, std::ios::binary};
    bytes.assign(std::istreambuf_iterator<char>{in}, {});
  }
  for (std::size_t at = 4'096; at < bytes.size(); at += 4'096)
    bytes[at] = '\x55';
  std::ofstream{path, std::ios::binary} << bytes;
  const auto done = compact(path);
  ASSERT_FALSE(done);
  EXPECT_EQ(done.error().detail.find('\n'), std::string::npos);
}

} // namespace
} // namespace rollcast::journal
