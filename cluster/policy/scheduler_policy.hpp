#pragma once

#include "cluster/policy/fleet.hpp"
#include "cluster/policy/id_ranges.hpp"
#include "cluster/policy/limits.hpp"
#include "cluster/policy/slot_index.hpp"
#include "cluster/policy/view.hpp"
#include "cluster/policy/waiting_line.hpp"

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <utility>
#include <vector>

namespace rollcast::policy {

/// Running totals since construction.
struct policy_counters {
  std::uint64_t dispatches = 0;
  std::uint64_t resumes = 0;
  std::uint64_t migrations = 0; ///< Pulls planned.
  std::uint64_t recomputes = 0; ///< Dispatches that prefill again what was computed before.
  std::uint64_t recomputed_tokens = 0;
  std::uint64_t evictions = 0;      ///< Parked KV that had to make room, spills included.
  std::uint64_t spills = 0;         ///< Of those: kept in spill space.
  std::uint64_t restores = 0;       ///< Resumes from spill space.
  std::uint64_t fair_turns = 0;     ///< Placements by rule 3.
  std::uint64_t resident_turns = 0; ///< Placements by rule 5.
  std::uint64_t cuts = 0;           ///< Chunks taken away from slow workers: rule 8.
  std::uint64_t failed_chunks = 0;
  std::uint64_t stale_events = 0;
  std::uint64_t refused_events = 0;
};

/// What one worker is believed to hold. Blocks: reserved + parked <= kv_blocks, always.
struct worker_view {
  worker_id worker;
  std::uint32_t running = 0;
  std::uint32_t slots = 0;
  std::uint32_t kv_blocks = 0;
  std::uint32_t reserved_blocks = 0;
  std::uint32_t parked_blocks = 0;
  std::uint64_t spill_tokens = 0;   ///< Size of its spill space.
  std::uint64_t spilled_tokens = 0; ///< In use there; never above its size.
  bool draining = false;
};

/// What is believed of one response.
struct response_view {
  phase at = phase::waiting;
  std::uint32_t tokens_done = 0;
  std::uint32_t attempt = 0;
  std::optional<worker_id> holder; ///< While running.
  std::optional<worker_id> kv_at;  ///< Home while waiting, unconfirmed source while running.
  bool spilled = false;            ///< Its KV is in the spill space of `kv_at`.
};

/// Decides which chunk of which response runs where, and whose KV travels, stays or goes.
///
/// The rules and their reasons are in README.md. Pure: no clock, randomness, thread, I/O or float.
/// Equal histories of `on` and `plan` give equal answers on every machine, so a cluster can be
/// replayed from a seed (tests/sim).
///
/// Cost: `on` and each decision of `plan` are O(log n) in responses, groups and workers, plus the
/// members of one group where news is about that group, plus what a lost worker held.
class scheduler_policy {
public:
  explicit scheduler_policy(policy_limits limits = {});
  scheduler_policy(const scheduler_policy&) = delete;
  scheduler_policy& operator=(const scheduler_policy&) = delete;

  /// Takes note of one event. Safe against late, doubled and reordered news: only the current
  /// holder of the current attempt is believed, and what has ended stays ended.
  [[nodiscard]] verdict on(const event& what);

  /// Returns what to do now, in order, and takes it as done. Call it after events until it returns
  /// nothing; one call is bounded by `policy_limits::decisions_per_plan`.
  [[nodiscard]] std::vector<decision> plan();

  /// Why the latest refused event was refused.
  const refusal& last_refusal() const noexcept { return refusal_; }

  // -- accounting ---------------------------------------------------------------------------------

  std::size_t waiting() const noexcept { return line_.size() + stranded_.size(); }
  /// Waiting responses whose next chunk is larger than every live worker; the shell may end them.
  std::size_t stranded() const noexcept { return stranded_.size(); }
  std::size_t running() const noexcept { return running_; }
  std::size_t groups() const noexcept { return group_slots_.size(); }
  std::vector<worker_view> workers() const; ///< By id.
  std::optional<worker_view> worker(worker_id id) const;
  /// The responses whose chunk a worker has, ascending.
  std::vector<response_id> running_on(worker_id id) const;
  std::optional<response_view> response(response_id id) const;
  /// Expected length of the members in tokens (rule 3), before their own limits; nothing while the
  /// group has neither a finished member nor a chunk's end.
  std::optional<std::uint32_t> estimate(group_id id) const;
  const policy_counters& counters() const noexcept { return counters_; }

private:
  verdict note(const worker_joined& e);
  verdict note(const worker_priced& e);
  verdict note(const worker_paced& e);
  verdict note(const worker_lost& e);
  verdict note(const worker_draining& e);
  verdict note(const response_submitted& e);
  verdict note(const chunk_finished& e);
  verdict note(const chunk_failed& e);
  verdict note(const kv_moved& e);
  verdict note(const kv_lost& e);
  verdict note(const response_cancelled& e);
  verdict note(const group_closed& e);

  verdict refuse(refusal_reason reason, std::uint64_t wanted, std::uint64_t allowed);
  /// The slot of a response that runs on `worker` as `attempt`, or `no_slot`: old news.
  slot_t believed(response_id id, worker_id worker, std::uint32_t attempt) const;
  slot_t open_group(const response_submitted& e);
  void wait(slot_t response);
  /// All that are left drain, so nobody takes KV over from them: they need not keep it.
  void give_up_parked();
  /// Forgets KV of one that does not run: from now on it ranks as one without.
  void lose_parked(slot_t response);
  /// Moves parked KV out of the blocks of its home: its owner ranks as one without, too.
  void spill_parked(slot_t response);
  void stop_running(slot_t response);
  /// Ends a chunk that came to nothing: the response waits again, at its last edge.
  void give_back(slot_t response);
  void cancel(slot_t response);
  void end(slot_t response);
  void measure(slot_t group, std::uint32_t length);
  /// Takes note of how long the longest member is said to be.
  void tell(slot_t group, std::uint32_t longest);
  /// Tells that a member has got so far without ending.
  void advance(slot_t group, std::uint32_t tokens_done);
  void reestimate(slot_t group);
  void release_later(slot_t worker, const response_state& r, std::uint32_t attempt);

  void plan_releases(std::vector<decision>& out);
  void plan_static(std::vector<decision>& out);
  void plan_chunks(std::vector<decision>& out);
  void plan_cuts(std::vector<decision>& out);
  /// The open worker that gives a response its tokens soonest, or `no_slot`.
  slot_t fastest_open() const;
  /// Rule 8: who on `slow` has the most to gain on `fast`, or `no_slot`.
  slot_t worth_cutting(slot_t slow, slot_t fast) const;
  slot_t bound_worker(slot_t group);
  /// Places one response if it can be placed anywhere (or, by rule 5, one that yields its place).
  bool place(slot_t response, bool fair, std::vector<decision>& out);
  bool place_by_eviction(slot_t response, slot_t left, bool fair, std::vector<decision>& out);
  void overtake(slot_t response, std::uint64_t times);
  /// Whether it was overtaken so often that it must not be again.
  bool starving(const response_state& r) const;
  /// The worker that the response may not run on next, or `no_slot`: under force_migration its last
  /// one, or one that was too slow.
  slot_t left_behind(slot_t response) const;
  /// Rule 5: who is parked on `worker` and goes there instead, or `no_slot`.
  slot_t resident_before(slot_t response, slot_t worker, bool evicting) const;
  void evict_for(slot_t response, slot_t worker, std::uint64_t tokens, std::vector<decision>& out);
  void send(slot_t response, slot_t worker, std::vector<decision>& out);
  dispatch begin(slot_t response, slot_t worker, std::uint32_t kv_blocks);
  /// Whether its KV travels to `target`; else it is computed again there.
  bool pulls(const response_state& r, slot_t target) const;
  std::uint32_t budget(const response_state& r) const;
  /// Tokens of KV at the end of the next chunk.
  std::uint64_t chunk_tokens(const response_state& r) const;
  /// Tokens of KV that room is reserved for: rule 4.
  std::uint64_t room_tokens(const response_state& r) const;

  policy_limits limits_;
  slab<response_state> responses_;
  slab<group_state> groups_;
  fleet fleet_{responses_};
  waiting_line line_{responses_, groups_, limits_.outlook};
  slot_index<response_id> response_slots_;
  slot_index<group_id> group_slots_;
  std::map<response_id, slot_t> stranded_;
  /// Where the last edge of a response was. Only under `force_migration`.
  absl::flat_hash_map<response_id, worker_id, id_hash> last_edges_;
  /// Where a chunk was cut because others are faster, until the next one begins.
  absl::flat_hash_map<response_id, worker_id, id_hash> taken_from_;
  std::size_t pace_news_ = 0;     ///< Since slow workers were last looked for.
  std::vector<release> releases_; ///< Owed by events, told by the next plan.
  std::size_t releases_told_ = 0;
  id_ranges closed_groups_;
  id_ranges gone_workers_;
  std::uint64_t sequence_ = 0;
  /// The worker that was found to yield to nobody since the last placement of this plan.
  slot_t unyielding_ = no_slot;
  std::uint64_t placements_ = 0;
  std::size_t running_ = 0;
  refusal refusal_;
  policy_counters counters_;
};

} // namespace rollcast::policy
