#include "cluster/security/curve_socket.hpp"

#include <netdb.h>
#include <netinet/in.h>
#include <spdlog/spdlog.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <optional>

namespace rollcast {
namespace {

/// With ZeroMQ's 100 a flood of connections fills the queue, and whoever is left out of it, friend
/// or stranger, waits a second for the kernel's next try. The kernel cuts it to its somaxconn.
constexpr int backlog = 4096;

/// ZMQ_ZAP_ENFORCE_DOMAIN, which zmq.h names only for builds with its drafts.
constexpr int zap_enforce_domain = 93;

struct place {
  std::string host;
  std::string port;
};

/// The parts of "tcp://host:port"; none if it is none.
std::optional<place> place_of(const std::string& endpoint) {
  constexpr std::string_view scheme = "tcp://";
  const auto colon = endpoint.rfind(':');
  if (!endpoint.starts_with(scheme) || colon < scheme.size())
    return std::nullopt;
  return place{endpoint.substr(scheme.size(), colon - scheme.size()), endpoint.substr(colon + 1)};
}

struct listening {
  int descriptor = -1;
  int failed = 0; ///< errno.
};

/// Listens there. `shared`: beside a listener of ours that has the port.
listening listen_at(const place& where, bool shared) {
  addrinfo hints{};
  hints.ai_family = AF_INET; // as ZeroMQ binds
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE;
  addrinfo* found = nullptr;
  if (::getaddrinfo(where.host == "*" ? nullptr : where.host.c_str(),
                    where.port == "*" ? "0" : where.port.c_str(), &hints, &found)
      != 0)
    return {-1, EADDRNOTAVAIL};
  listening made{::socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0), 0};
  const int on = 1;
  ::setsockopt(made.descriptor, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  if (shared)
    ::setsockopt(made.descriptor, SOL_SOCKET, SO_REUSEPORT, &on, sizeof on);
  if (::bind(made.descriptor, found->ai_addr, found->ai_addrlen) != 0
      || ::listen(made.descriptor, backlog) != 0) {
    made.failed = errno;
    ::close(made.descriptor);
    made.descriptor = -1;
  }
  ::freeaddrinfo(found);
  return made;
}

std::string port_of(int descriptor) {
  sockaddr_in name{};
  socklen_t size = sizeof name;
  ::getsockname(descriptor, reinterpret_cast<sockaddr*>(&name), &size);
  return std::to_string(ntohs(name.sin_port));
}

void serve_with(zmq::socket_t& socket, const key_pair& keys) {
  socket.set(zmq::sockopt::curve_server, true);
  socket.set(zmq::sockopt::curve_secretkey, keys.secret_key);
  // Without a doorkeeper ZeroMQ would let anybody in who knows the public key; enforced, nobody.
  socket.set(zmq::sockopt::zap_domain, "rollcast");
  const int on = 1;
  (void)::zmq_setsockopt(socket.handle(), zap_enforce_domain, &on, sizeof on);
}

/// Hands a listening descriptor to ZeroMQ, which closes it when it is unbound. Throws as `bind`
/// does.
void adopt(zmq::socket_t& socket, int descriptor, const std::string& endpoint) {
  (void)::zmq_setsockopt(socket.handle(), ZMQ_USE_FD, &descriptor, sizeof descriptor);
  socket.bind(endpoint);
  const int none = -1;
  (void)::zmq_setsockopt(socket.handle(), ZMQ_USE_FD, &none, sizeof none);
}

} // namespace

void dial_with(zmq::socket_t& socket, const key_pair& keys, const std::string& server) {
  socket.set(zmq::sockopt::curve_serverkey, server);
  socket.set(zmq::sockopt::curve_publickey, keys.public_key);
  socket.set(zmq::sockopt::curve_secretkey, keys.secret_key);
}

void dial_within(zmq::socket_t& socket, const std::shared_ptr<curve_policy>& policy) {
  if (!policy)
    return;
  const auto keys = policy->current();
  dial_with(socket, keys, keys.public_key);
}

result<void> curve_listener::bind(zmq::socket_t& socket, const std::string& endpoint,
                                  const std::string& what) {
  const auto refuse = [&](int number, const std::string& why) {
    const bool taken = number == EADDRINUSE;
    return fail(taken ? errc::address_in_use : errc::bad_config,
                what + " " + endpoint + ": " + why
                  + (taken ? "; stop what listens there or choose another port" : ""));
  };
  try {
    socket.set(zmq::sockopt::handshake_ivl, static_cast<int>(handshake_max.count()));
    socket.set(zmq::sockopt::backlog, backlog);
    if (!policy_) {
      socket.bind(endpoint);
      endpoint_ = socket.get(zmq::sockopt::last_endpoint);
      return {};
    }
    auto where = place_of(endpoint);
    if (!where)
      return refuse(EINVAL, "with keys it must be tcp://host:port");
    version_ = policy_->keys_version();
    bound_ = {policy_->current()};
    const auto made = listen_at(*where, false);
    if (made.descriptor < 0)
      return refuse(made.failed, std::strerror(made.failed));
    where->port = port_of(made.descriptor);
    serve_with(socket, bound_.front());
    adopt(socket, made.descriptor,
          "tcp://" + endpoint.substr(6, endpoint.rfind(':') - 6) + ":" + where->port);
    descriptors_ = {made.descriptor};
    endpoint_ = socket.get(zmq::sockopt::last_endpoint);
  } catch (const zmq::error_t& e) {
    return refuse(e.num(), e.what());
  }
  return {};
}

void curve_listener::turn(zmq::socket_t& socket) {
  const auto now = std::chrono::steady_clock::now();
  if (!policy_ || again_ > now || policy_->keys_version() == version_)
    return;
  int failed = 0;
  try {
    failed = bind_again(socket);
  } catch (const zmq::error_t& e) {
    failed = e.num();
  }
  if (failed == 0)
    return;
  again_ = now + std::chrono::milliseconds{100};
  spdlog::warn("cannot listen on {} with the new key yet: {}", endpoint_, ::zmq_strerror(failed));
}

int curve_listener::bind_again(zmq::socket_t& socket) {
  const auto version = policy_->keys_version();
  const auto valid = policy_->valid();
  const auto where = place_of(endpoint_);
  const bool kept = !bound_.empty() && std::ranges::find(valid, bound_.front()) != valid.end()
                    && bound_.size() == 1;
  const int on = 1;
  if (kept) {
    for (const int descriptor : descriptors_)
      ::setsockopt(descriptor, SOL_SOCKET, SO_REUSEPORT, &on, sizeof on);
  } else if (!bound_.empty()) {
    socket.unbind(endpoint_); // all of them: they have one name
    bound_.clear();
    descriptors_.clear();
  }
  for (auto it = valid.rbegin(); it != valid.rend(); ++it) { // the current key is set last
    if (std::ranges::find(bound_, *it) != bound_.end())
      continue;
    const auto made = listen_at(*where, true);
    if (made.descriptor < 0)
      return made.failed; // ZeroMQ closes what it had a moment later
    serve_with(socket, *it);
    adopt(socket, made.descriptor, endpoint_);
    bound_.insert(bound_.begin(), *it);
    descriptors_.push_back(made.descriptor);
  }
  version_ = version;
  spdlog::info("{} listens with {} key{}", endpoint_, bound_.size(), bound_.size() == 1 ? "" : "s");
  return 0;
}

} // namespace rollcast
