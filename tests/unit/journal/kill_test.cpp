// Goal: a process that is killed while it writes loses nothing that was reported durable, and what
// it leaves is what a prefix of its records comes to.
// Method: a child writes a seeded history and tells over a pipe how much is durable; it is killed
// with SIGKILL at random moments; its journal is compared with the fold of the same history. The
// next child goes on from there in the same journal.

#include "tests/support/temporary_directory.hpp"
#include "tests/unit/journal/histories.hpp"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <csignal>
#include <thread>

namespace rollcast::journal {
namespace {

/// Writes the history from its `from`th record on, until it is killed.
[[noreturn]] void write_for_ever(const std::string& path, std::uint64_t seed, std::uint64_t from,
                                 int tell) {
  auto all = journal::open({.path = path, .gather = std::chrono::milliseconds{1}});
  if (!all)
    std::_Exit(1);
  all->keeper->on_commit([&](std::uint64_t durable, double) {
    if (::write(tell, &durable, sizeof durable) != sizeof durable)
      std::_Exit(1);
  });
  history h{seed};
  while (h.written() < from)
    (void)h.next();
  for (;;) {
    all->keeper->write(h.next());
    if (all->keeper->written() - all->keeper->durable() > 500)
      std::this_thread::sleep_for(std::chrono::milliseconds{1});
  }
}

/// @returns how many records the child had on disk by its own word.
std::uint64_t run_and_kill(const std::string& path, std::uint64_t seed, std::uint64_t from,
                           std::chrono::microseconds after) {
  std::array<int, 2> pipe{};
  EXPECT_EQ(::pipe(pipe.data()), 0);
  const auto child = ::fork();
  if (child == 0) {
    ::close(pipe[0]);
    write_for_ever(path, seed, from, pipe[1]);
  }
  ::close(pipe[1]);
  std::uint64_t durable = 0;
  // The first word means that it has opened; the rest of its life is `after`.
  EXPECT_EQ(::read(pipe[0], &durable, sizeof durable), static_cast<ssize_t>(sizeof durable));
  std::this_thread::sleep_for(after);
  ::kill(child, SIGKILL);
  int status = 0;
  ::waitpid(child, &status, 0);
  EXPECT_TRUE(WIFSIGNALED(status)) << "the child ended by itself";
  while (::read(pipe[0], &durable, sizeof durable) == static_cast<ssize_t>(sizeof durable)) {
  }
  ::close(pipe[0]);
  return durable;
}

TEST(journal_kill, leaves_a_prefix_with_everything_that_was_durable) {
  const temporary_directory where;
  const auto path = (where / "j").string();
  constexpr std::uint64_t seed = 77;
  prng rng{seed};
  std::uint64_t at = 0; ///< Records that the journal has.
  history h{seed};
  for (int round = 1; round <= 15; ++round) {
    SCOPED_TRACE("round " + std::to_string(round) + ", from record " + std::to_string(at));
    const auto durable = run_and_kill(path, seed, at, std::chrono::microseconds{rng.below(40'000)});
    ASSERT_FALSE(HasFailure());
    ASSERT_GT(durable, 0u);
    const auto all = journal::open({.path = path});
    ASSERT_TRUE(all) << all.error().detail;
    const auto found = text_of(all->found);
    while (h.written() < at + durable)
      (void)h.next();
    // One more commit at most was on disk before its word was out.
    for (int more = 0; more < 20'000 && text_of(h.known()) != found; ++more)
      (void)h.next();
    ASSERT_EQ(text_of(h.known()), found) << "no prefix from " << at + durable << " on";
    at = h.written();
  }
}

} // namespace
} // namespace rollcast::journal
