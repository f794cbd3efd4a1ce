#pragma once

#include "cluster/drafts/draft_ledger.hpp"
#include "cluster/security/curve_policy.hpp"
#include "engine/base/error.hpp"

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace rollcast {

struct draft_link_options {
  std::string server; ///< ZeroMQ endpoint of the draft server: "tcp://127.0.0.1:7453".
  draft_ledger_limits ledger;
  std::size_t outbox_tokens_max = 1u << 20; ///< Told and not looked at yet; more is left out.
  std::size_t inbox_tokens_max = 1u << 20;  ///< Heard and not collected; more is heard again later.
  int frames_max = 4'096;                   ///< Of each direction, in ZeroMQ's queues.
  std::shared_ptr<curve_policy> keys = nullptr; ///< Of the cluster; null: nothing is encrypted.
};

/// A worker's connection to the draft server: a DEALER and a thread of its own. The engine's thread
/// leaves notes and takes what has come; it waits for nothing but a mutex that is held for as long
/// as a vector is swapped. While there is no server, nothing is sent and nothing comes.
class draft_link {
public:
  /// Counters since `open`; any thread may read them.
  struct counters {
    std::atomic<std::uint64_t> written_tokens{0}; ///< Sent to the server.
    std::atomic<std::uint64_t> heard_tokens{0};   ///< Of siblings, in order and new.
    std::atomic<std::uint64_t> gaps_repaired{0};
    std::atomic<std::uint64_t> dropped{0};  ///< Notes and frames that there was no room for.
    std::atomic<std::uint64_t> rejected{0}; ///< Frames that are none, or of another vocabulary.
  };

  /// Starts the thread; the server need not be there yet. Fails with `bad_config` (detail: the
  /// endpoint) if that is none.
  static result<std::unique_ptr<draft_link>> open(draft_link_options options);
  ~draft_link();
  draft_link(const draft_link&) = delete;
  draft_link& operator=(const draft_link&) = delete;

  // As `draft_ledger`'s, from the engine's thread.
  void follow(group_id group, draft_group name, response_id response,
              std::span<const token_id> tokens);
  void wrote(draft_group name, response_id response, std::uint32_t position,
             std::span<const token_id> tokens);
  void leave(draft_group name, response_id response);
  void lost(draft_group name, response_id response, std::uint32_t position);

  /// Takes what siblings wrote, oldest first, until `tokens_max` tokens are reached. Clears `out`.
  void collect(std::size_t tokens_max, std::vector<heard_tokens>& out);

  const counters& counts() const noexcept;

private:
  class loop;
  explicit draft_link(std::unique_ptr<loop> l) noexcept;
  std::unique_ptr<loop> loop_;
};

} // namespace rollcast
