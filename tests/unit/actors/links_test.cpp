// Goal: two connections to a scheduler's control port never have the same number one soon after the
// other: CAF takes the later one for the earlier one, which it forgets late, and a worker's link
// would be lost (actors/caf_replacements.cpp).
// Method: a real scheduler in this process; beside connections that stay, others are made and
// closed one after another, and their other ends are looked up among the descriptors of this
// process.

#include "cluster/security/doorkeeper.hpp"
#include "tests/unit/actors/real_cluster.hpp"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <deque>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

namespace rollcast::test {
namespace {

/// A connection to `port` of this machine; `local` is the port at this end.
int connect_to(std::uint16_t port, std::uint16_t& local) {
  const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in to{};
  to.sin_family = AF_INET;
  to.sin_port = htons(port);
  to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  EXPECT_EQ(::connect(fd, reinterpret_cast<const sockaddr*>(&to), sizeof to), 0);
  sockaddr_in own{};
  socklen_t size = sizeof own;
  EXPECT_EQ(::getsockname(fd, reinterpret_cast<sockaddr*>(&own), &size), 0);
  local = ntohs(own.sin_port);
  return fd;
}

/// The descriptor of this process whose peer has `port`; -1 if there is none.
int descriptor_with_peer(std::uint16_t port) {
  for (const auto& entry : std::filesystem::directory_iterator{"/proc/self/fd"}) {
    const int fd = std::stoi(entry.path().filename().string());
    sockaddr_in peer{};
    socklen_t size = sizeof peer;
    if (::getpeername(fd, reinterpret_cast<sockaddr*>(&peer), &size) == 0
        && peer.sin_family == AF_INET && ntohs(peer.sin_port) == port)
      return fd;
  }
  return -1;
}

/// For how many descriptors the kernel's table of this process has room.
int descriptors_with_room() {
  std::ifstream status{"/proc/self/status"};
  for (std::string line; std::getline(status, line);)
    if (line.starts_with("FDSize:"))
      return std::stoi(line.substr(7));
  return 0;
}

/// Makes connections one after another; each has a number that none of the `apart` before it had.
void make_and_end(cluster& c, int connections, std::size_t apart) {
  std::deque<int> last; // newest behind
  for (int i = 0; i < connections; ++i) {
    std::uint16_t local = 0;
    const int fd = connect_to(c.ports.cluster_port, local);
    char greeting = 0; // the scheduler has accepted, and said so
    ASSERT_EQ(::recv(fd, &greeting, 1, 0), 1);
    const int number = descriptor_with_peer(local);
    ASSERT_GE(number, 0);
    EXPECT_EQ(std::count(last.begin(), last.end(), number), 0) << "connection " << i;
    last.push_back(number);
    if (last.size() > apart)
      last.pop_front();
    ::close(fd);
    for (int waited = 0; descriptor_with_peer(local) >= 0 && waited < 10'000; ++waited)
      std::this_thread::sleep_for(std::chrono::milliseconds{1});
  }
}

/// Links with numbers as they are in a scheduler's process.
class links : public ::testing::Test {
protected:
  void SetUp() override {
    raise_file_limit();
    rlimit files{};
    ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &files), 0);
    if (files.rlim_cur < 2 * 2048)
      GTEST_SKIP() << "no more than " << files.rlim_cur << " open files are allowed here";
  }
};

TEST_F(links, have_room_for_their_numbers_before_the_first_comes) {
  cluster c;
  EXPECT_GE(descriptors_with_room(), 2048);
}

TEST_F(links, have_numbers_that_no_other_had_just_before) {
  cluster c;
  std::vector<int> living; // their numbers are passed over
  for (int i = 0; i < 20; ++i) {
    std::uint16_t local = 0;
    living.push_back(connect_to(c.ports.cluster_port, local));
  }
  make_and_end(c, 1100, 900); // all numbers, and some again
  for (const int fd : living)
    ::close(fd);
}

/// Links where the limit of open files lies within their numbers.
class links_with_few_files : public ::testing::Test {
protected:
  void SetUp() override {
    ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &before_), 0);
    auto few = before_;
    few.rlim_cur = 1024 + 100;
    if (few.rlim_cur > few.rlim_max)
      GTEST_SKIP() << "no more than " << few.rlim_max << " open files are allowed here";
    ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &few), 0);
  }
  void TearDown() override { ::setrlimit(RLIMIT_NOFILE, &before_); }

private:
  rlimit before_{};
};

TEST_F(links_with_few_files, have_the_first_numbers_again_after_the_last) {
  cluster c;
  make_and_end(c, 250, 80);
}

} // namespace
} // namespace rollcast::test
