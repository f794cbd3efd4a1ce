#include "cluster/transport/tcp_probe.hpp"

#include <netdb.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <memory>

namespace rollcast {
namespace {

class file_descriptor {
public:
  explicit file_descriptor(int fd) : fd_(fd) {}
  ~file_descriptor() {
    if (fd_ >= 0)
      ::close(fd_);
  }
  file_descriptor(const file_descriptor&) = delete;
  file_descriptor& operator=(const file_descriptor&) = delete;
  int get() const noexcept { return fd_; }

private:
  int fd_;
};

/// Returns 0 or an errno.
int try_connect(const addrinfo& to, std::chrono::milliseconds timeout) {
  const file_descriptor fd{
    ::socket(to.ai_family, to.ai_socktype | SOCK_NONBLOCK | SOCK_CLOEXEC, to.ai_protocol)};
  if (fd.get() < 0)
    return errno;
  if (::connect(fd.get(), to.ai_addr, to.ai_addrlen) == 0)
    return 0;
  if (errno != EINPROGRESS)
    return errno;
  pollfd wait{fd.get(), POLLOUT, 0};
  if (::poll(&wait, 1, static_cast<int>(timeout.count())) <= 0)
    return ETIMEDOUT;
  int why = 0;
  socklen_t size = sizeof why;
  ::getsockopt(fd.get(), SOL_SOCKET, SO_ERROR, &why, &size);
  return why;
}

} // namespace

result<void> probe_tcp(const std::string& host, std::uint16_t port,
                       std::chrono::milliseconds timeout) {
  const auto where = host + ":" + std::to_string(port);
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  if (const int bad = ::getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &found);
      bad != 0)
    return fail(errc::peer_lost, "cannot resolve " + where + ": " + ::gai_strerror(bad));
  const std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)> list{found, &::freeaddrinfo};
  int why = EHOSTUNREACH;
  for (const addrinfo* at = list.get(); at != nullptr && why != 0; at = at->ai_next)
    why = try_connect(*at, timeout);
  if (why == 0)
    return {};
  return fail(why == ETIMEDOUT ? errc::timed_out : errc::peer_lost,
              "cannot reach " + where + ": " + std::strerror(why));
}

} // namespace rollcast
