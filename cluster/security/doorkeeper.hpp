#pragma once

#include "cluster/security/curve_policy.hpp"
#include "engine/base/error.hpp"

#include <zmq.hpp>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

namespace rollcast {

struct door_options {
  std::shared_ptr<curve_policy> keys;  ///< Null: whoever reaches the port comes in.
  std::size_t connections_max = 8'192; ///< Or three eighths of the files allowed, if less.
  std::size_t connections_per_address_max = 2'048;
};

/// What a message says of where it came from.
struct visitor {
  std::string client;                  ///< Its name in the allow list; without keys its address.
  std::optional<client_limits> limits; ///< Of the allow list.
  std::string owner;                   ///< Its name in the allow list; "" without keys.
  bool operates = true;                ///< It may ask about everybody's batches.
};

/// Stands at a listening ZeroMQ socket: lets in only keys of the policy (ZAP) and no more
/// connections than allowed (the one that has been silent for longest goes), and shows out whose
/// key is taken from the list. Looks at the key files each second on behalf of everybody who shares
/// the policy. One a context, because ZAP has one handler a context.
class doorkeeper {
public:
  /// Counters since `open`; any thread may read them.
  struct counters {
    std::atomic<std::uint64_t> connections{0};       ///< Open now.
    std::atomic<std::uint64_t> refused_handshake{0}; ///< With keys: by one that is unknown, none.
    std::atomic<std::uint64_t> refused_too_many{0};  ///< In all or of one address.
  };

  /// Starts the thread. Looks at the limit of open files now. @pre `listener` is a socket of
  /// `context` that is not bound yet. Destroy the doorkeeper before both. Fails with `bad_config`
  /// (what ZeroMQ says).
  static result<std::unique_ptr<doorkeeper>> open(zmq::context_t& context, zmq::socket_t& listener,
                                                  door_options options);
  ~doorkeeper();
  doorkeeper(const doorkeeper&) = delete;
  doorkeeper& operator=(const doorkeeper&) = delete;

  /// Who sent a message of the listener (a frame of its body). None: its key has been taken from
  /// the list, so nothing of it counts. On the listener's thread.
  std::optional<visitor> who_sent(const zmq::message_t& body);

  const counters& counts() const noexcept;

private:
  class loop;
  explicit doorkeeper(std::unique_ptr<loop> l) noexcept;
  std::unique_ptr<loop> loop_;
};

/// Raises the soft limit of open files to the hard one; once, at the start of a process.
void raise_file_limit() noexcept;

} // namespace rollcast
