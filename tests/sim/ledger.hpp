#pragma once

#include "cluster/policy/scheduler_policy.hpp"

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

namespace rollcast::sim {

/// What an outsider knows of the policy: what it was told and accepted, and what it decided. Kept
/// apart from the policy's own books so that the two can be held against each other.
struct ledger {
  struct response {
    policy::response_submitted terms;
    policy::group_rules rules;
    std::uint32_t tokens_done = 0;
    std::uint32_t attempt = 0;       ///< The last one dispatched.
    std::optional<worker_id> holder; ///< Who runs it, by our reading of the protocol.
    std::optional<worker_id> pulls;  ///< Source of a pull that nothing has confirmed yet.
    int finished = 0;
    bool cancelled = false;
    bool ended() const { return finished > 0 || cancelled; }
  };
  std::map<response_id, response> responses;
  std::map<worker_id, policy::worker_joined> workers; ///< Joined and not lost.
  std::uint32_t reserve_tokens = 1;                   ///< Of the policy's limits.
};

// Each checker returns what is wrong in one line, or nothing. None asks the policy what it did.

/// No worker is promised more blocks or slots than it has.
std::string check_room(const ledger& book, const policy::scheduler_policy& policy);
/// Waiting, running and ended add up to all, and the policy's holders are ours.
std::string check_nothing_lost(const ledger& book, const policy::scheduler_policy& policy);
/// A dispatch: nobody else holds the response, the attempt is the next one, the numbers are right.
std::string check_dispatch(const ledger& book, const policy::dispatch& d);
/// A release: never the source of a pull that is not confirmed.
std::string check_release(const ledger& book, const policy::release& r);
/// A spill: of a response that nobody runs or pulls, on a worker that has space for such KV.
std::string check_spill(const ledger& book, const policy::spill& s);
/// A cut: of a chunk that runs there.
std::string check_cut(const ledger& book, const policy::cut& c);
/// An accepted end of a chunk: it came from the one holder, and the response had not ended.
std::string check_report(const ledger& book, response_id response, worker_id worker,
                         std::uint32_t attempt);

/// Writes down an accepted event or a decision.
void write_down(ledger& book, const policy::event& accepted);
void write_down(ledger& book, const policy::decision& decided);

} // namespace rollcast::sim
