// Goal: a journal is opened by one process at a time, and what is no whole journal of ours is
// refused with one line and left alone.
// Method: second openers; files that are foreign, newer, cut or changed byte by byte.

#include "cluster/journal/inspect.hpp"
#include "cluster/journal/sqlite.hpp"
#include "tests/support/temporary_directory.hpp"
#include "tests/unit/journal/histories.hpp"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <fstream>
#include <iterator>

namespace rollcast::journal {
namespace {

std::string read_all(const std::string& path) {
  std::ifstream in{path, std::ios::binary};
  return {std::istreambuf_iterator<char>{in}, {}};
}

void write_all(const std::string& path, const std::string& bytes) {
  std::ofstream{path, std::ios::binary} << bytes;
}

/// The line of the refusal, "" if it is opened.
std::string refused(const std::string& path) {
  const auto all = journal::open({.path = path});
  if (all)
    return {};
  EXPECT_EQ(all.error().code, errc::bad_config);
  EXPECT_EQ(all.error().detail.find('\n'), std::string::npos);
  EXPECT_NE(all.error().detail.find("journal "), std::string::npos);
  return all.error().detail;
}

testing::AssertionResult says(const std::string& line, const std::string& what) {
  if (line.find(what) != std::string::npos)
    return testing::AssertionSuccess();
  return testing::AssertionFailure() << "'" << line << "' does not say '" << what << "'";
}

TEST(journal_open, refuses_a_second_one_and_names_the_first) {
  const temporary_directory where;
  const auto path = (where / "j").string();
  {
    const auto first = journal::open({.path = path});
    ASSERT_TRUE(first);
    EXPECT_TRUE(says(refused(path), "process " + std::to_string(::getpid()) + " has it open"));
    std::filesystem::create_symlink(path, where / "other name");
    EXPECT_TRUE(says(refused((where / "other name").string()), "has it open"));
    EXPECT_FALSE(compact(path));
  }
  EXPECT_EQ(refused(path), "");
}

TEST(journal_open, is_free_again_when_its_process_is_killed) {
  const temporary_directory where;
  const auto path = (where / "j").string();
  const auto child = ::fork();
  if (child == 0) {
    auto all = journal::open({.path = path});
    ::kill(::getpid(), SIGKILL);
  }
  ASSERT_EQ(::waitpid(child, nullptr, 0), child);
  EXPECT_EQ(refused(path), "");
}

TEST(journal_open, repeats_no_control_character_of_a_damaged_schema) {
  const temporary_directory where;
  const auto path = (where / "j").string();
  ASSERT_EQ(refused(path), "");
  auto bytes = read_all(path);
  const auto at = bytes.find("CREATE TABLE epoch");
  ASSERT_NE(at, std::string::npos);
  bytes[at + 7] = '\x1b';
  write_all(path, bytes);
  const auto line = refused(path);
  EXPECT_TRUE(says(line, "damaged"));
  EXPECT_EQ(line.find('\x1b'), std::string::npos) << line;
}

TEST(journal_open, makes_files_that_only_their_owner_reads) {
  const temporary_directory where;
  const auto all = journal::open({.path = (where / "j").string()});
  ASSERT_TRUE(all);
  for (const auto* end : {"j", "j-wal", "j-shm", "j.lock"}) {
    struct stat about {};
    ASSERT_EQ(::stat((where / end).c_str(), &about), 0) << end;
    EXPECT_EQ(about.st_mode & 0777, 0600u) << end;
  }
}

TEST(journal_open, refuses_paths_that_cannot_be) {
  const temporary_directory where;
  EXPECT_NE(refused((where / "no" / "such" / "j").string()), "");
  EXPECT_NE(refused(where.path().string()), "");
  EXPECT_NE(refused(""), "");
}

TEST(journal_open, leaves_what_is_not_ours_alone) {
  const temporary_directory where;
  const auto text = (where / "text").string();
  write_all(text, std::string(5'000, 'x'));
  EXPECT_TRUE(says(refused(text), "not a database"));
  EXPECT_EQ(read_all(text), std::string(5'000, 'x'));
  const auto foreign = (where / "foreign").string();
  ASSERT_TRUE((*database::open(foreign, access::write))->run("CREATE TABLE t (x)"));
  const auto before = read_all(foreign);
  EXPECT_TRUE(says(refused(foreign), "of another program"));
  EXPECT_FALSE(inspect(foreign));
  EXPECT_FALSE(compact(foreign));
  EXPECT_EQ(read_all(foreign), before);
}

TEST(journal_open, refuses_a_newer_schema) {
  const temporary_directory where;
  const auto path = (where / "j").string();
  ASSERT_TRUE(journal::open({.path = path}));
  ASSERT_TRUE((*database::open(path, access::write))->run("PRAGMA user_version = 4"));
  EXPECT_TRUE(says(refused(path), "schema 4, this build knows 1 to 3"));
  EXPECT_FALSE(inspect(path));
}

TEST(journal_open, makes_a_journal_of_schema_1_its_own) {
  const temporary_directory where;
  const auto path = (where / "j").string();
  {
    auto all = journal::open({.path = path});
    ASSERT_TRUE(all);
    all->keeper->write(batch_submitted{{1}, small_spec("k", 2), 1, 1, "alice"});
  }
  ASSERT_TRUE((*database::open(path, access::write))
                ->run("ALTER TABLE batches DROP COLUMN owner;"
                      "ALTER TABLE batches DROP COLUMN experts;"
                      "ALTER TABLE edges DROP COLUMN experts; PRAGMA user_version = 1"));
  for (const auto* owner : {"", "bob"}) {
    auto all = journal::open({.path = path});
    ASSERT_TRUE(all) << all.error().detail;
    ASSERT_FALSE(all->found.batches.empty());
    EXPECT_EQ(all->found.batches[0].spec.batch_key, "k");
    EXPECT_EQ(all->found.batches[0].owner, "");
    if (*owner == 0)
      all->keeper->write(batch_submitted{{2}, small_spec("b", 2), 3, 2, "bob"});
    else
      EXPECT_EQ(all->found.batches.at(1).owner, owner);
  }
}

TEST(journal_open, makes_a_journal_of_schema_2_its_own) {
  const temporary_directory where;
  const auto path = (where / "j").string();
  {
    auto all = journal::open({.path = path});
    ASSERT_TRUE(all);
    all->keeper->write(batch_submitted{{1}, small_spec("k", 1), 1, 1});
    all->keeper->write(batch_started{{1}, "p", 1});
    all->keeper->write(edge_of({1}, 0, 0, 5));
  }
  ASSERT_TRUE((*database::open(path, access::write))
                ->run("ALTER TABLE batches DROP COLUMN experts;"
                      "ALTER TABLE edges DROP COLUMN experts; PRAGMA user_version = 2"));
  for (const std::uint32_t tokens : {5u, 9u}) {
    auto all = journal::open({.path = path});
    ASSERT_TRUE(all) << all.error().detail;
    ASSERT_EQ(all->found.batches.size(), 1u);
    EXPECT_EQ(all->found.batches[0].started->experts, expert_layout{});
    EXPECT_EQ(all->found.batches[0].responses[0].tokens.size(), tokens);
    if (tokens == 5)
      all->keeper->write(edge_of({1}, 0, 5, 4));
  }
}

TEST(journal_open, refuses_ids_of_experts_that_do_not_go_with_the_tokens) {
  const temporary_directory where;
  const auto path = (where / "j").string();
  const auto spec = small_spec("k", 1); // a prompt of three tokens
  spec->routed_experts_from = 1;
  {
    auto all = journal::open({.path = path});
    ASSERT_TRUE(all);
    all->keeper->write(batch_submitted{{1}, spec, 1, 1});
    all->keeper->write(batch_started{{1}, "p", 1, {2, 3, 2}});
    auto edge = edge_of({1}, 0, 0, 5); // positions 1 to 6
    edge.experts.assign(6 * 12, std::byte{7});
    all->keeper->write(edge);
  }
  {
    auto all = journal::open({.path = path});
    ASSERT_TRUE(all) << all.error().detail;
    EXPECT_EQ(all->found.batches[0].started->experts, (expert_layout{2, 3, 2}));
    EXPECT_EQ(all->found.batches[0].responses[0].experts,
              std::vector<std::byte>(6 * 12, std::byte{7}));
    all->keeper->write(edge_of({1}, 0, 5, 4)); // without any
  }
  EXPECT_TRUE(says(refused(path), "token 5: has 0 bytes of ids of experts, not 48"));
}

TEST(journal_open, begins_anew_where_its_making_was_cut) {
  const temporary_directory where;
  const auto path = (where / "j").string();
  ASSERT_TRUE((*database::open(path, access::write))->run("PRAGMA journal_mode = WAL"));
  EXPECT_EQ(refused(path), "");
  const auto empty = (where / "empty").string();
  write_all(empty, "");
  EXPECT_EQ(refused(empty), "");
}

/// A journal with a history, closed.
std::string made(const std::string& path, std::uint64_t records) {
  auto all = journal::open({.path = path});
  history h{3};
  for (std::uint64_t i = 0; all && i < records; ++i)
    all->keeper->write(h.next());
  return text_of(h.known());
}

TEST(journal_open, finds_a_changed_bit_of_a_token_or_logprob) {
  const temporary_directory where;
  const auto path = (where / "j").string();
  const batch_id b{1};
  {
    auto all = journal::open({.path = path});
    ASSERT_TRUE(all);
    all->keeper->write(batch_submitted{b, small_spec("k", 1), 1, 1});
    all->keeper->write(batch_started{b, "p", 1});
    all->keeper->write(edge_of(b, 0, 0, 100));
  }
  const auto whole = read_all(path);
  const auto edge = edge_of(b, 0, 0, 100);
  for (const std::string_view part :
       {std::string_view{reinterpret_cast<const char*>(edge.tokens.data()), 400},
        std::string_view{reinterpret_cast<const char*>(edge.logprobs.data()), 400},
        std::string_view{reinterpret_cast<const char*>(edge.kept_masses.data()), 400}}) {
    const auto at = whole.find(part);
    ASSERT_NE(at, std::string::npos);
    auto bad = whole;
    bad[at + 123] = static_cast<char>(bad[at + 123] ^ 1);
    write_all(path, bad);
    EXPECT_TRUE(says(refused(path), "batch 1, response 0, token 0: the bits are not those"));
  }
  write_all(path, whole);
  EXPECT_EQ(refused(path), "");
}

TEST(journal_open, never_trusts_a_damaged_file) {
  const temporary_directory where;
  const auto path = (where / "j").string();
  (void)made(path, 800);
  const auto whole = read_all(path);
  std::size_t refusals = 0;
  for (std::uint64_t seed = 1; seed <= 300; ++seed) {
    prng rng{seed};
    auto bad = whole;
    if (rng.chance(20))
      bad.resize(rng.below(bad.size()));
    for (auto flips = rng.below(20); flips > 0 && !bad.empty(); --flips)
      bad[rng.below(bad.size())] = static_cast<char>(rng.next());
    for (const auto* end : {"-wal", "-shm"})
      std::filesystem::remove(path + end);
    write_all(path, bad);
    refusals += refused(path).empty() ? 0 : 1;
    (void)inspect(path);
  }
  EXPECT_GT(refusals, 100u) << "of 300";
}

} // namespace
} // namespace rollcast::journal
