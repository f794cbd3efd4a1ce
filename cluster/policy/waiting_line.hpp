#pragma once

#include "cluster/policy/state.hpp"

#include <cstddef>
#include <cstdint>
#include <optional>

namespace rollcast::policy {

/// Who waits, and in which order they go. Private to the folder.
///
/// Groups stand in line, not responses: a group stands where its first waiting member belongs, so
/// news about a group moves one entry however many members it has. O(log groups) each.
class waiting_line {
public:
  waiting_line(slab<response_state>& responses, slab<group_state>& groups, std::uint32_t outlook)
    : responses_(responses), groups_(groups), outlook_(outlook) {}

  void add(slot_t response);
  void remove(slot_t response);
  std::size_t size() const noexcept { return size_; }

  /// Tells that a chunk of `tokens` was given to the group.
  void serve(slot_t group, std::uint32_t tokens);
  /// Tells that what the group's estimate is made of has changed.
  void reestimate(slot_t group);

  /// oracle: tells the length of a response before it is added.
  void expect(response_id response, std::uint32_t tokens) { expected_[response] = tokens; }
  void forget_expected(response_id response) { expected_.erase(response); }
  /// Forgets a group that is over. @pre nobody of it waits
  void forget(slot_t group);

  class cursor;
  /// Rules 1 and 2: the first waiting response behind `at`, `no_slot` if there is none.
  slot_t first(cursor& at) const;
  /// Moves `at` past the response that `first` returned just now, and past its group if it is no
  /// probe: the siblings behind it need as much room or more.
  void pass_over(cursor& at) const;
  /// Rule 3: the first member of the group served least, `no_slot` if nobody waits.
  /// Cost: O(log groups), amortised over the calls of `add` and `serve`.
  slot_t least_served();
  /// static_: the first response in order of submission of groups.
  slot_t first_static() const { return static_.empty() ? no_slot : static_.begin()->slot; }

  /// Length that the members of a group are expected to have, before their limits: the longest
  /// finished, or `outlook` times the furthest end of a chunk, whichever is more; 0 is unknown.
  /// What a group was told holds instead until a member outruns it.
  std::uint32_t group_length(const group_state& g) const;
  /// Length that a response is expected to have.
  std::uint32_t estimate(const response_state& r) const;
  /// One number for the order of rules 1 and 2, higher first; orders evictions, lowest first.
  std::uint32_t rank(const response_state& r) const;

private:
  struct static_entry {
    std::uint64_t sequence = 0;
    response_id id;
    slot_t slot = no_slot;
    friend bool operator<(const static_entry& a, const static_entry& b) {
      return a.sequence != b.sequence ? a.sequence < b.sequence : a.id < b.id;
    }
  };
  /// (expected remainder counted down from the top, group): ascending is longest first.
  struct ready_entry {
    group_id id;
    std::uint32_t shortness = 0;
    slot_t slot = no_slot;
    friend bool operator<(const ready_entry& a, const ready_entry& b) {
      return a.shortness != b.shortness ? a.shortness < b.shortness : a.id < b.id;
    }
  };
  struct served_entry {
    std::uint64_t served = 0;
    group_id id;
    slot_t slot = no_slot;
    friend bool operator<(const served_entry& a, const served_entry& b) {
      return a.served != b.served ? a.served < b.served : a.id < b.id;
    }
  };
  struct probe_entry {
    response_id id;
    std::uint32_t tokens_done = 0;
    slot_t slot = no_slot;
    friend bool operator<(const probe_entry& a, const probe_entry& b) {
      return a.tokens_done != b.tokens_done ? a.tokens_done < b.tokens_done : a.id < b.id;
    }
  };

  std::uint32_t shortness(const response_state& r) const;
  /// Order among the members of a group, lowest first.
  std::uint32_t turn(const response_state& r) const;
  void stand(slot_t group);
  void list_served(slot_t group);

  slab<response_state>& responses_;
  slab<group_state>& groups_;
  std::uint32_t outlook_ = 0;
  absl::btree_set<probe_entry> probes_;
  absl::btree_set<ready_entry> ready_;
  /// Groups with anybody waiting, and some of which nobody waits any more. What was served since
  /// a group was listed is not in its key yet, so a key may be too low and is put right when its
  /// group comes first: most groups are served many times before that.
  absl::btree_set<served_entry> served_;
  absl::btree_set<static_entry> static_;
  /// oracle: lengths; aside, because no other mode has them. Looked up, never walked.
  absl::flat_hash_map<response_id, std::uint32_t, id_hash> expected_;
  std::size_t size_ = 0;
  std::uint64_t changes_ = 1; ///< Of `probes_` and `ready_`.
};

/// Where a search has got to: it only moves past what it passed over.
class waiting_line::cursor {
  friend class waiting_line;
  std::optional<probe_entry> passed_probe;
  std::optional<ready_entry> passed_group;
  std::uint64_t changes = 0; ///< The line as it was when the places below were looked up.
  absl::btree_set<probe_entry>::const_iterator probe;
  absl::btree_set<ready_entry>::const_iterator group;
};

} // namespace rollcast::policy
