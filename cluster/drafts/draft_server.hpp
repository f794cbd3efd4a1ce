#pragma once

#include "cluster/drafts/draft_board.hpp"
#include "cluster/security/curve_policy.hpp"
#include "engine/base/error.hpp"

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <string>

namespace rollcast {

struct draft_server_options {
  std::string listen = "tcp://127.0.0.1:*"; ///< ZeroMQ endpoint; `*` takes any free port.
  draft_board_limits board;
  int frames_max = 4'096; ///< Waiting for one worker, or from it; more is dropped and asked for.
  std::shared_ptr<curve_policy> keys = nullptr; ///< Of the cluster; null: nothing is encrypted.
};

/// Relays what the members of a group write to the workers that host others of the group: a ROUTER
/// and a thread over a `draft_board`. It never waits for a worker: what one does not take in time
/// is dropped, and the worker asks for it when it sees the gap.
class draft_server {
public:
  /// Levels and totals; any thread may read them.
  struct counters {
    std::atomic<std::uint64_t> groups{0};
    std::atomic<std::uint64_t> bytes{0};
    std::atomic<std::uint64_t> followers{0};
    std::atomic<std::uint64_t> relayed_tokens{0};
    std::atomic<std::uint64_t> gaps_repaired{0};
    std::atomic<std::uint64_t> dropped_malformed{0};
    std::atomic<std::uint64_t> dropped_full{0};     ///< No memory, or a worker's queue is full.
    std::atomic<std::uint64_t> dropped_conflict{0}; ///< Other tokens than were told before.
    std::atomic<std::int64_t> turned_ns{0};         ///< Steady clock, when the thread last turned.
  };

  /// Binds and starts the thread. Fails with `address_in_use` or `bad_config` (detail: endpoint).
  static result<std::unique_ptr<draft_server>> open(draft_server_options options);
  ~draft_server();
  draft_server(const draft_server&) = delete;
  draft_server& operator=(const draft_server&) = delete;

  /// What workers connect to, e.g. "tcp://127.0.0.1:40213".
  const std::string& endpoint() const noexcept;
  const counters& counts() const noexcept;

private:
  class loop;
  explicit draft_server(std::unique_ptr<loop> l) noexcept;
  std::unique_ptr<loop> loop_;
};

} // namespace rollcast
