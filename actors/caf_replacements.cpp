#include "actors/caf_replacements.hpp"

#include <caf/openssl/session.hpp>
#include <caf/policy/tcp.hpp>
#include <fcntl.h>
#include <openssl/err.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>

namespace rollcast {
namespace {

constexpr unsigned numbers_first = 1024;
constexpr unsigned numbers = 1024;

/// `fd` under the next number in turn that is free; `fd` itself if it can have none.
int renumber(int fd) noexcept {
  static std::atomic<unsigned> turn{0};
  const auto under = [fd](unsigned number) {
    return ::fcntl(fd, F_DUPFD_CLOEXEC, static_cast<int>(numbers_first + number));
  };
  int renumbered = under(turn);
  if (renumbered < 0 && turn != 0)
    renumbered = under(0); // the limit of open files lies within the thousand
  if (renumbered < 0)
    return fd;
  turn = (static_cast<unsigned>(renumbered) - numbers_first + 1) % numbers; // those in use left out
  ::close(fd);
  return renumbered;
}

} // namespace

void reserve_connection_numbers() noexcept {
  const int any = ::open("/dev/null", O_RDONLY | O_CLOEXEC);
  if (any < 0)
    return;
  const int last = ::fcntl(any, F_DUPFD_CLOEXEC, static_cast<int>(numbers_first + numbers - 1));
  if (last >= 0)
    ::close(last);
  ::close(any);
}

} // namespace rollcast

// CAF leaves in OpenSSL's queue what went wrong on one connection, and OpenSSL then takes it for a
// failure of the next one that merely has nothing to read: a stranger's handshake would end the
// connections of workers. These two do the same with an empty queue.
namespace caf::openssl {

rw_state session::read_some(size_t& result, native_socket, void* buf, size_t len) {
  ERR_clear_error();
  return do_some(SSL_read, result, buf, len, "read_some");
}

rw_state session::write_some(size_t& result, native_socket, const void* buf, size_t len) {
  ERR_clear_error();
  const auto write = [](SSL* to, void* from, int bytes) { return SSL_write(to, from, bytes); };
  return do_some(write, result, const_cast<void*>(buf), len, "write_some");
}

} // namespace caf::openssl

// CAF calls a connection by the number of its descriptor, and forgets a closed one by a message
// behind everything that is still being read. If the next connection has got the same number by
// then, it is forgotten in its place: its peer hears no more, and misses the heartbeats seconds
// later. Connections that end just before another begins are usual: every worker tries the port
// before it dials. So accepted connections get numbers in turn, of a thousand.
namespace caf::policy {

bool tcp::try_accept(io::network::native_socket& result, io::network::native_socket fd) {
  result = ::accept4(fd, nullptr, nullptr, SOCK_CLOEXEC);
  if (result >= 0)
    result = rollcast::renumber(result);
  else if (errno != EAGAIN && errno != EWOULDBLOCK)
    return false; // CAF asks again when the listener is ready again
  return true;
}

} // namespace caf::policy
