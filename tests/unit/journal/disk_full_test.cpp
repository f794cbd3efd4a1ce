// Goal: a disk that is full, or fails, stops new batches and nothing else: what was written
// meanwhile is there once it works again, in order.
// Method: a file system of two megabytes if we may mount one; else and also, a limit on the size of
// files, which fails writes in the middle.

#include "tests/support/temporary_directory.hpp"
#include "tests/unit/journal/histories.hpp"

#include <gtest/gtest.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <fstream>
#include <functional>
#include <thread>
#include <utility>

namespace rollcast::journal {
namespace {

using namespace std::chrono_literals;

bool becomes(const journal& keeper, bool takes_batches) {
  for (int i = 0; i < 1'000; ++i) {
    if (keeper.health().takes_batches == takes_batches)
      return true;
    std::this_thread::sleep_for(10ms);
  }
  return false;
}

/// Writes before, while and after the disk is full, and looks at it all.
void survive(const std::string& path, const std::function<void()>& fill,
             const std::function<void()>& make_room) {
  history h{21};
  {
    auto all = journal::open({.path = path, .gather = 1ms, .retry = 10ms});
    ASSERT_TRUE(all) << all.error().detail;
    auto& keeper = *all->keeper;
    for (int i = 0; i < 200; ++i)
      keeper.write(h.next());
    ASSERT_TRUE(settled(keeper));
    // What a retry frees is filled again, until nothing moves.
    std::uint64_t durable = 0;
    for (int i = 0; i < 400; ++i) {
      fill();
      for (int records = 0; records < 50; ++records)
        keeper.write(h.next());
      std::this_thread::sleep_for(50ms);
      if (std::exchange(durable, keeper.durable()) == durable && !keeper.health().takes_batches)
        break;
    }
    ASSERT_TRUE(becomes(keeper, false));
    const auto line = keeper.health().why_not;
    EXPECT_NE(line.find("make room"), std::string::npos) << line;
    EXPECT_EQ(line.find('\n'), std::string::npos);
    for (int i = 0; i < 500; ++i)
      keeper.write(h.next());
    std::this_thread::sleep_for(100ms);
    EXPECT_EQ(keeper.durable(), durable);
    EXPECT_GT(keeper.health().pending_bytes, 0u);
    make_room();
    EXPECT_TRUE(settled(keeper));
    EXPECT_TRUE(becomes(keeper, true)) << keeper.health().why_not;
    EXPECT_EQ(keeper.health().pending_bytes, 0u);
    for (int i = 0; i < 200; ++i)
      keeper.write(h.next());
  }
  const auto all = journal::open({.path = path});
  ASSERT_TRUE(all) << all.error().detail;
  EXPECT_EQ(text_of(all->found), text_of(h.known()));
}

TEST(journal_disk_full, loses_nothing_on_a_full_file_system) {
  const temporary_directory where;
  if (::geteuid() != 0 || ::mount("none", where.path().c_str(), "tmpfs", 0, "size=8m") != 0)
    GTEST_SKIP() << "may not mount a file system";
  const auto ballast = (where / "ballast").string();
  survive((where / "j").string(),
          [&] {
            std::ofstream out{ballast, std::ios::binary | std::ios::app};
            const std::string block(4'096, 'x');
            while (out << block << std::flush) {
            }
          },
          [&] { std::filesystem::remove(ballast); });
  EXPECT_EQ(::umount(where.path().c_str()), 0);
}

TEST(journal_disk_full, loses_nothing_when_writes_fail_half_way) {
  const temporary_directory where;
  ASSERT_NE(::signal(SIGXFSZ, SIG_IGN), SIG_ERR);
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  survive((where / "j").string(),
          [&] {
            rlimit little = before;
            little.rlim_cur =
              6'000; // so that also a checkpoint and a frame of the log end in a page
            ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &little), 0);
          },
          [&] { ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &before), 0); });
}

TEST(journal_disk_full, closes_in_its_time_and_keeps_what_was_durable) {
  const temporary_directory where;
  ASSERT_NE(::signal(SIGXFSZ, SIG_IGN), SIG_ERR);
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  const auto path = (where / "j").string();
  {
    auto all = journal::open({.path = path, .gather = 1ms, .retry = 10ms});
    ASSERT_TRUE(all) << all.error().detail;
    all->keeper->write(epoch_promised{7});
    ASSERT_TRUE(settled(*all->keeper));
    rlimit none = before;
    none.rlim_cur = 0;
    ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &none), 0);
    all->keeper->write(epoch_promised{8});
    ASSERT_TRUE(becomes(*all->keeper, false));
    const auto began = std::chrono::steady_clock::now();
    all->keeper.reset();
    EXPECT_LT(std::chrono::steady_clock::now() - began, 8s);
    const auto again = journal::open({.path = path});
    ASSERT_FALSE(again);
    EXPECT_EQ(again.error().code, errc::io_failed) << again.error().detail;
  }
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &before), 0);
  const auto all = journal::open({.path = path});
  ASSERT_TRUE(all) << all.error().detail;
  EXPECT_EQ(all->found.epoch_promised, 7u);
}

} // namespace
} // namespace rollcast::journal
