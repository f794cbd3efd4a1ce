#pragma once

#include "cluster/wire/messages.hpp"

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

namespace rollcast {

/// About what an event holds in memory.
std::size_t bytes_of(const wire::event_envelope& what);

struct outbox_bounds {
  std::size_t bytes_of_peer = std::size_t{64} << 20;
  std::size_t bytes_of_all = std::size_t{512} << 20;
  /// Beyond `bytes_of_all` a peer with no more than this is still sent to: whoever reads what it is
  /// sent has little here.
  std::size_t bytes_of_reader = std::size_t{1} << 20;
};

/// What the scheduler says to controllers, on its way to the socket, and how much of it there is
/// for each: from `post` until the socket has written it, whoever holds it meanwhile. A peer that
/// has its bound gets nothing more pushed, and with twice as much no answer either; one message is
/// always taken. Any thread.
class outbox {
public:
  explicit outbox(outbox_bounds bounds = {});

  /// Its bytes count until every copy of this is gone; that may be on any thread, and after the
  /// outbox.
  using burden = std::shared_ptr<const void>;
  struct letter {
    std::string peer;
    wire::event_envelope what;
    burden weight;
  };
  /// What was not taken, by peer: the requests that get no answer.
  using refused = std::map<std::string, std::vector<std::uint64_t>>;
  struct turn {
    std::vector<letter> letters; ///< In the order in which they were posted.
    refused dropped;
  };

  /// Counts what goes to the socket past this box, answer or not. Null: the peer has its bound, so
  /// it must not.
  burden charge(const std::string& peer, std::size_t bytes) { return charge(peer, bytes, false); }
  /// @returns false if it was dropped.
  bool post(const std::string& peer, wire::event_envelope what);
  /// What was posted and dropped since the last time.
  turn take();
  /// Bytes on their way to a peer.
  std::size_t bytes_for(const std::string& peer) const;

private:
  struct tally;
  struct load;

  burden charge(const std::string& peer, std::size_t bytes, bool answers);

  std::shared_ptr<tally> tally_;
  std::mutex mutex_;
  turn next_; ///< Guarded by `mutex_`.
};

} // namespace rollcast
