// Goal: two connections to a scheduler's control port never have the same number one soon after the
// other: CAF takes the later one for the earlier one, which it forgets late, and a worker's link
// would be lost (actors/caf_replacements.cpp).
// Method: a real scheduler in this process; connections are made and closed one after another, and
// their other ends are looked up among the descriptors of this process.

#include "tests/unit/actors/real_cluster.hpp"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <set>
#include <string>
#include <thread>

namespace rollcast::test {
namespace {

using namespace std::chrono_literals;

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

TEST(links, have_room_for_their_numbers_before_the_first_comes) {
  cluster c;
  EXPECT_GE(descriptors_with_room(), 2048);
}

TEST(links, have_numbers_that_no_other_had_just_before) {
  cluster c;
  std::set<int> numbers;
  constexpr std::size_t connections = 100;
  for (std::size_t i = 0; i < connections; ++i) {
    std::uint16_t local = 0;
    const int fd = connect_to(c.ports.cluster_port, local);
    char greeting = 0; // the scheduler has accepted, and said so
    ASSERT_EQ(::recv(fd, &greeting, 1, 0), 1);
    numbers.insert(descriptor_with_peer(local));
    ::close(fd);
    for (int waited = 0; descriptor_with_peer(local) >= 0 && waited < 10'000; ++waited)
      std::this_thread::sleep_for(1ms);
  }
  EXPECT_EQ(numbers.size(), connections);
  EXPECT_EQ(numbers.count(-1), 0u);
}

} // namespace
} // namespace rollcast::test
