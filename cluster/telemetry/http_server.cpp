#include "cluster/telemetry/http_server.hpp"

#include "cluster/telemetry/http_responder.hpp"
#include "engine/base/check.hpp"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netdb.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

namespace rollcast {

namespace {

using clock = std::chrono::steady_clock;

/// Owns a file descriptor.
class descriptor {
public:
  explicit descriptor(int fd = -1) noexcept : fd_(fd) {}
  descriptor(descriptor&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  descriptor& operator=(descriptor&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~descriptor() {
    if (fd_ >= 0)
      ::close(fd_);
  }
  int get() const noexcept { return fd_; }

private:
  int fd_;
};

constexpr std::string_view head_too_large =
  "HTTP/1.1 431 Request Header Fields Too Large\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";

/// How long an answered peer may take to close its side.
constexpr std::chrono::milliseconds linger{500};

struct connection {
  descriptor fd;
  std::string request;
  std::string answer; ///< Empty while the request is incomplete.
  std::size_t sent = 0;
  clock::time_point deadline;
  bool answered = false; ///< All is sent; waits for the peer to close.
};

struct listener {
  descriptor fd;
  std::uint16_t port = 0;
};

std::string endpoint(const http_server_options& options) {
  const bool v6 = options.address.find(':') != std::string::npos;
  return (v6 ? "[" + options.address + "]" : options.address) + ":" + std::to_string(options.port);
}

result<listener> listen_on(const http_server_options& options) {
  addrinfo hints{};
  hints.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV | AI_PASSIVE;
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  if (const int code = ::getaddrinfo(options.address.c_str(), std::to_string(options.port).c_str(),
                                     &hints, &found);
      code != 0)
    return fail(errc::bad_config, "metrics address '" + options.address
                                    + "': " + ::gai_strerror(code)
                                    + "; give a numeric address such as 127.0.0.1 or 0.0.0.0");
  const std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)> guard{found, &::freeaddrinfo};
  descriptor fd{
    ::socket(found->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, IPPROTO_TCP)};
  const int on = 1;
  // Only SO_REUSEADDR: with SO_REUSEPORT a second process would silently share the port.
  if (fd.get() < 0 || ::setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) != 0
      || ::bind(fd.get(), found->ai_addr, found->ai_addrlen) != 0 || ::listen(fd.get(), 64) != 0) {
    const int why = errno;
    if (why == EADDRINUSE)
      return fail(errc::address_in_use, "metrics endpoint " + endpoint(options)
                                          + " is in use; choose another port, or 0 for any");
    return fail(errc::bad_config,
                "cannot serve metrics on " + endpoint(options) + ": " + std::strerror(why));
  }
  sockaddr_storage bound{};
  socklen_t size = sizeof bound;
  ROLLCAST_CHECK(::getsockname(fd.get(), reinterpret_cast<sockaddr*>(&bound), &size) == 0);
  const auto port = bound.ss_family == AF_INET6
                      ? reinterpret_cast<const sockaddr_in6*>(&bound)->sin6_port
                      : reinterpret_cast<const sockaddr_in*>(&bound)->sin_port;
  return listener{std::move(fd), ntohs(port)};
}

} // namespace

// -- the loop -----------------------------------------------------------------

class http_server::loop {
public:
  loop(http_server_options options, listener l, http_routes routes)
    : port(l.port), options_(std::move(options)), listener_(std::move(l.fd)),
      wake_(::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)), responder_(std::move(routes)) {
    ROLLCAST_CHECK(wake_.get() >= 0);
    thread_ = std::thread([this] { run(); });
  }

  ~loop() {
    const std::uint64_t one = 1;
    ROLLCAST_CHECK(::write(wake_.get(), &one, sizeof one) == sizeof one);
    thread_.join();
  }

  const std::uint16_t port;

private:
  void run() {
    std::vector<pollfd> polled;
    for (;;) {
      polled.assign({{wake_.get(), POLLIN, 0}, {listener_.get(), POLLIN, 0}});
      for (const auto& c : connections_)
        polled.push_back(
          {c.fd.get(), static_cast<short>(c.answer.empty() || c.answered ? POLLIN : POLLOUT), 0});
      ::poll(polled.data(), polled.size(), until_next_deadline_ms());
      if (polled[0].revents != 0)
        return;
      const auto now = clock::now();
      for (std::size_t i = 0; i < connections_.size(); ++i)
        if (polled[i + 2].revents != 0 && !advance(connections_[i], now))
          connections_[i].deadline = clock::time_point::min();
      std::erase_if(connections_, [now](const connection& c) { return c.deadline <= now; });
      if (polled[1].revents != 0)
        accept_all(now);
    }
  }

  int until_next_deadline_ms() const {
    if (connections_.empty())
      return -1;
    const auto first = std::ranges::min_element(connections_, {}, &connection::deadline)->deadline;
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(first - clock::now()).count();
    return static_cast<int>(std::clamp<std::int64_t>(left, 0, 60'000));
  }

  void accept_all(clock::time_point now) {
    for (;;) {
      descriptor fd{::accept4(listener_.get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC)};
      if (fd.get() < 0) {
        // Out of descriptors: the pending connection would wake the loop for ever.
        if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM)
          std::this_thread::sleep_for(std::chrono::milliseconds{20});
        return;
      }
      // The oldest first: who is honest has long been answered.
      if (connections_.size() >= options_.connections_max)
        connections_.erase(connections_.begin());
      connections_.push_back({std::move(fd), {}, {}, 0, now + options_.request_ms_max});
    }
  }

  /// Reads or writes what the socket takes without waiting. @returns false when it is done with.
  bool advance(connection& c, clock::time_point now) {
    if (c.answered)
      return discard(c);
    if (c.answer.empty() && !receive(c, now))
      return false;
    while (c.sent < c.answer.size()) {
      const auto n =
        ::send(c.fd.get(), c.answer.data() + c.sent, c.answer.size() - c.sent, MSG_NOSIGNAL);
      if (n < 0)
        return errno == EAGAIN || errno == EINTR;
      c.sent += static_cast<std::size_t>(n);
    }
    if (c.answer.empty())
      return true;
    // Closing with unread input would reset the connection, and the peer might lose the answer.
    ::shutdown(c.fd.get(), SHUT_WR);
    c.answered = true;
    c.deadline = std::min(c.deadline, now + linger);
    return discard(c);
  }

  /// Reads and forgets. @returns false when the peer has closed.
  static bool discard(const connection& c) {
    char piece[4096];
    const auto n = ::recv(c.fd.get(), piece, sizeof piece, 0);
    return n > 0 || (n < 0 && (errno == EAGAIN || errno == EINTR));
  }

  bool receive(connection& c, clock::time_point now) {
    char piece[4096];
    for (;;) {
      const auto n = ::recv(c.fd.get(), piece, sizeof piece, 0);
      if (n < 0)
        return errno == EAGAIN || errno == EINTR;
      if (n == 0)
        return false;
      // The end of the head may straddle two pieces.
      const auto from = c.request.size() < 3 ? 0 : c.request.size() - 3;
      c.request.append(piece, static_cast<std::size_t>(n));
      if (const auto end = c.request.find("\r\n\r\n", from); end != std::string::npos)
        c.answer = respond(std::string_view{c.request}.substr(0, end + 4));
      else if (c.request.size() > options_.request_bytes_max)
        c.answer = head_too_large;
      else
        continue;
      c.deadline = now + options_.answer_ms_max;
      return !c.answer.empty();
    }
  }

  std::string respond(std::string_view head) {
    if (head.size() > options_.request_bytes_max)
      return std::string{head_too_large};
    return responder_.answer(head);
  }

  const http_server_options options_;
  descriptor listener_;
  descriptor wake_;
  const http_responder responder_;
  std::vector<connection> connections_; ///< Oldest first.
  std::thread thread_;
};

// -- the handle ---------------------------------------------------------------

result<std::unique_ptr<http_server>> http_server::start(http_server_options options,
                                                        http_routes routes) {
  ROLLCAST_CHECK(routes.metrics && routes.healthz && routes.readyz);
  auto bound = listen_on(options);
  if (!bound)
    return fail(bound);
  return std::unique_ptr<http_server>{new http_server{
    std::make_unique<loop>(std::move(options), std::move(*bound), std::move(routes))}};
}

http_server::http_server(std::unique_ptr<loop> l) noexcept : port_(l->port), loop_(std::move(l)) {}

http_server::~http_server() = default;

std::uint16_t http_server::port() const noexcept {
  return port_;
}

void http_server::stop() noexcept {
  loop_.reset();
}

} // namespace rollcast
