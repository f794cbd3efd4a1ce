#pragma once

#include "cluster/security/curve_policy.hpp"
#include "engine/base/error.hpp"

#include <zmq.hpp>

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>

namespace rollcast {

/// A half greeting holds a connection no longer than this.
inline constexpr std::chrono::milliseconds handshake_max{5'000};

/// Has `socket` dial with these keys a listener that has the public key `server`. Throws
/// `zmq::error_t` as its other options do. @pre the socket has not connected yet
void dial_with(zmq::socket_t& socket, const key_pair& keys, const std::string& server);

/// As `dial_with`, to a process that holds the same key file. A null `policy` changes nothing.
void dial_within(zmq::socket_t& socket, const std::shared_ptr<curve_policy>& policy);

/// Binds a listening socket, and binds it anew whenever its key changes.
///
/// ZeroMQ gives a listener the key that the socket had when it was bound, and unbinding ends the
/// connections that came in by it. So a new key gets a second listener on the same port, and
/// whoever connects with one of the two gets through: the kernel deals connections out between
/// them, and a client that reached the wrong one dials again by itself. When the old key's grace
/// ends both are unbound and the new one is bound alone; its clients reconnect by themselves.
/// Belongs to the thread of the socket.
class curve_listener {
public:
  /// A null `policy` is a listener without keys, of any transport.
  explicit curve_listener(std::shared_ptr<curve_policy> policy) : policy_(std::move(policy)) {}

  /// Binds to `endpoint`, with keys a "tcp://host:port", where * is every host or any port. The
  /// doorkeeper of the socket's context must be open. Fails with `address_in_use` or `bad_config`;
  /// `what` begins the line.
  result<void> bind(zmq::socket_t& socket, const std::string& endpoint, const std::string& what);

  /// Where the socket listens.
  const std::string& endpoint() const noexcept { return endpoint_; }

  /// Binds anew if the keys have changed. Call it now and then; cheap. What fails is said in the
  /// log and tried again.
  void turn(zmq::socket_t& socket);

private:
  /// @returns 0 or an errno. Throws `zmq::error_t` too.
  int bind_again(zmq::socket_t& socket);

  std::shared_ptr<curve_policy> policy_;
  std::string endpoint_;
  std::uint64_t version_ = 0;    ///< Of the keys that it is bound with.
  std::vector<key_pair> bound_;  ///< The latest first.
  std::vector<int> descriptors_; ///< ZeroMQ's, while bound.
  std::chrono::steady_clock::time_point again_{};
};

} // namespace rollcast
