#pragma once

#include "engine/base/error.hpp"

#include <cstddef>
#include <cstdint>
#include <string>
#include <unordered_map>

namespace rollcast {

struct request_bounds {
  std::size_t of_peer = 1'024;
  std::size_t of_all = 65'536;
  std::size_t bytes_of_client = std::size_t{256} << 20;
  std::size_t bytes_of_all = std::size_t{1} << 30;
};

/// Requests that were given to the scheduler and are not answered yet, by the connection and the
/// client that made them, so that one who asks too much is the one who is refused.
class request_ledger {
public:
  explicit request_ledger(request_bounds bounds) : bounds_(bounds) {}

  /// Whether one more request of so many bytes may be handed on. `client_max` bounds the client's
  /// number. @returns `queue_full` with the numbers.
  result<void> check(const std::string& peer, const std::string& client, std::size_t bytes,
                     std::size_t client_max) const;
  void take_on(const std::string& peer, const std::string& client, std::uint64_t request_id,
               std::size_t bytes);
  /// Counts one request of that number off, if there is one.
  void answered(const std::string& peer, std::uint64_t request_id);

private:
  struct entry {
    std::string client;
    std::size_t bytes = 0;
  };
  struct sum {
    std::size_t requests = 0;
    std::size_t bytes = 0;
  };

  request_bounds bounds_;
  /// By peer and request id, which a peer may use twice.
  std::unordered_map<std::string, std::unordered_multimap<std::uint64_t, entry>> by_peer_;
  std::unordered_map<std::string, sum> by_client_;
  sum all_;
};

} // namespace rollcast
