#pragma once

#include "cluster/policy/state.hpp"

#include <cstddef>
#include <cstdint>
#include <optional>
#include <set>

namespace rollcast::policy {

/// Who waits, and in which order they go. Private to the folder.
///
/// Groups stand in line, not responses: a group stands where its first waiting member belongs, so
/// news about a group moves one entry however many members it has. O(log groups) each.
class waiting_line {
public:
  waiting_line(slab<response_state>& responses, slab<group_state>& groups)
    : responses_(responses), groups_(groups) {}

  void add(slot_t response);
  void remove(slot_t response);
  std::size_t size() const noexcept { return size_; }

  /// Tells that a chunk of `tokens` was given to the group.
  void serve(slot_t group, std::uint32_t tokens);
  /// Tells that the group's estimate has changed.
  void reestimate(slot_t group);

  /// Where a search has got to: it only moves past what it passed over.
  struct cursor {
    std::optional<std::pair<std::uint32_t, response_id>> probe;
    std::optional<std::pair<std::uint32_t, group_id>> group;
  };

  /// Rules 1 and 2: the first waiting response behind `at`, `no_slot` if there is none.
  slot_t first(const cursor& at) const;
  /// Moves `at` past a response that `first` returned, and past its group if it is no probe: the
  /// siblings behind it need as much room or more.
  void pass_over(cursor& at, slot_t response) const;
  /// Rule 3: the first member of the group served least, `no_slot` if nobody waits.
  slot_t least_served() const;
  /// static_: the first response in order of submission of groups.
  slot_t first_static() const { return static_.empty() ? no_slot : static_.begin()->slot; }

  /// Length that the members of the group are expected to have.
  std::uint32_t estimate(const response_state& r) const;
  /// One number for the order of rules 1 and 2, higher first; orders evictions, lowest first.
  std::uint64_t rank(const response_state& r) const;

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
    std::uint32_t shortness = 0;
    group_id id;
    slot_t slot = no_slot;
    friend bool operator<(const ready_entry& a, const ready_entry& b) {
      return a.shortness != b.shortness ? a.shortness < b.shortness : a.id < b.id;
    }
  };
  struct served_entry {
    std::uint64_t tokens = 0;
    group_id id;
    slot_t slot = no_slot;
    friend bool operator<(const served_entry& a, const served_entry& b) {
      return a.tokens != b.tokens ? a.tokens < b.tokens : a.id < b.id;
    }
  };
  struct probe_entry {
    std::uint32_t tokens_done = 0;
    response_id id;
    slot_t slot = no_slot;
    friend bool operator<(const probe_entry& a, const probe_entry& b) {
      return a.tokens_done != b.tokens_done ? a.tokens_done < b.tokens_done : a.id < b.id;
    }
  };

  std::uint32_t shortness(const response_state& r) const;
  void stand(slot_t group);
  void list_served(slot_t group, bool waited_before);

  slab<response_state>& responses_;
  slab<group_state>& groups_;
  std::set<probe_entry> probes_;
  std::set<ready_entry> ready_;
  std::set<served_entry> served_; ///< Groups with anybody waiting.
  std::set<static_entry> static_;
  std::size_t size_ = 0;
};

} // namespace rollcast::policy
