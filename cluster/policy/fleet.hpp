#pragma once

#include "cluster/policy/load_heaps.hpp"
#include "cluster/policy/room_tree.hpp"
#include "cluster/policy/state.hpp"

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <vector>

namespace rollcast::policy {

/// The live workers: what each holds, and which of them should take a chunk. Private to the folder.
///
/// Room is compared in tokens (free blocks times block size), which answers "do the blocks fit"
/// exactly even when workers differ in block size. Changes are O(log workers).
class fleet {
public:
  explicit fleet(slab<response_state>& responses) : responses_(responses) {}

  std::size_t size() const noexcept { return by_id_.size(); }
  slot_t find(worker_id worker) const { return by_id_.find(worker); }
  const worker_state& operator[](slot_t slot) const { return workers_[slot]; }
  const std::vector<slot_t>& live() const noexcept { return live_; } ///< In no order.

  void add(const worker_joined& e, const kv_prices& prices);
  void price(slot_t worker, const kv_prices& prices) { workers_[worker].prices = prices; }
  void pace(slot_t worker, std::uint64_t token_ns) { workers_[worker].token_ns = token_ns; }
  void drain(slot_t worker);
  /// Forgets a worker. @pre nothing runs, is parked or pinned there
  void remove(slot_t worker);

  // -- what a worker holds ------------------------------------------------------------------------

  void start(slot_t response, slot_t worker, std::uint32_t reserved_blocks);
  void stop(slot_t response);
  /// Records KV of a response between chunks. `rank` orders evictions.
  void park(slot_t response, slot_t worker, std::uint32_t blocks, std::uint32_t rank);
  /// Moves parked KV into the spill space of its home. @pre can_spill(response)
  void spill(slot_t response);
  bool can_spill(slot_t response) const;
  /// Forgets the home of a waiting response, its KV parked or spilled.
  void unpark(slot_t response);
  void rerank(slot_t response, std::uint32_t rank);
  /// Turns the home of a response that starts elsewhere into the pinned source of its pull.
  void pin(slot_t response);
  void unpin(slot_t response);
  /// Makes the pinned source the home again, when the pull came to nothing.
  void unpin_to_home(slot_t response, std::uint32_t rank);

  // -- who takes a chunk --------------------------------------------------------------------------

  /// Brings the indices below up to date. A chunk's end and the next start there often cancel out,
  /// so they are not kept at every change. Call it before the three that follow.
  void settle();
  /// Whether any worker takes chunks at all.
  bool any_open() const noexcept { return !by_load_.empty(); }
  bool any_accepting() const noexcept { return !accepting_.empty(); }
  /// Capacity in tokens of the largest worker that is not draining; 0 without one.
  std::uint64_t largest_tokens() const;
  /// The open worker with the fewest running among those with room for `tokens`; ties go to the
  /// most room, then the lowest id. Cost: O(loads in use).
  std::optional<slot_t> least_loaded(std::uint64_t tokens, slot_t except = no_slot) const;
  /// The open worker with the most room if parked KV yields. O(1), O(log workers) with `except`.
  room_tree::entry roomiest_if_yielding(slot_t except = no_slot) const {
    return except == no_slot ? yielding_.best() : yielding_.best_except(except);
  }
  /// Whether a worker that is neither `except` nor draining has that much capacity.
  bool another_holds(std::uint64_t tokens, slot_t except) const;

  // -- whole groups (static_) ---------------------------------------------------------------------

  /// The next accepting worker in the round of ids. @pre any_accepting()
  slot_t next_in_round();
  /// The accepting worker with the fewest bound groups. @pre any_accepting()
  slot_t least_bound() const;
  void bind(slot_t worker);
  void unbind(slot_t worker);

private:
  /// Takes a waiting response out of its home's `parked` or `spilled`.
  void leave_list(slot_t response);
  void enter_spilled(slot_t response);
  void forget_home(slot_t response);
  void unsettle(slot_t worker);
  void refresh(slot_t worker);
  void stop_accepting(worker_state& w);

  slab<response_state>& responses_;
  slab<worker_state> workers_;
  slot_index<worker_id> by_id_;
  std::vector<slot_t> live_;
  std::map<worker_id, slot_t> accepting_;   ///< Live and not draining.
  std::multiset<std::uint64_t> capacities_; ///< Of the accepting.
  load_heaps by_load_;                      ///< The open.
  std::vector<slot_t> unsettled_;
  room_tree roomiest_;
  room_tree yielding_;
  std::set<std::pair<std::uint32_t, worker_id>> by_bound_; ///< The accepting.
  worker_id round_last_;
};

} // namespace rollcast::policy
