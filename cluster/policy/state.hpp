#pragma once

#include "cluster/policy/limits.hpp"
#include "cluster/policy/slot_index.hpp"

#include <absl/container/btree_set.h>

#include <compare>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

/// What the policy remembers. Private to the folder: callers see `scheduler_policy` only. Records
/// name one another by slot (an index into a `slab`), which costs a load where an id costs a
/// search.
namespace rollcast::policy {

/// Records of one kind at stable places; a freed slot is used again, last freed first. Kept in
/// chunks: nothing moves when it grows, and a record is two loads away, the first of them cached.
template <class Record>
class slab {
public:
  slot_t add(Record record) {
    if (free_.empty()) {
      if (used_ == chunks_.size() << chunk_bits)
        chunks_.push_back(std::make_unique<Record[]>(std::size_t{1} << chunk_bits));
      free_.push_back(static_cast<slot_t>(used_++));
    }
    const auto slot = free_.back();
    free_.pop_back();
    (*this)[slot] = std::move(record);
    return slot;
  }

  void erase(slot_t slot) {
    (*this)[slot] = Record{};
    free_.push_back(slot);
  }

  Record& operator[](slot_t slot) { return chunks_[slot >> chunk_bits][slot & chunk_mask]; }
  const Record& operator[](slot_t slot) const {
    return chunks_[slot >> chunk_bits][slot & chunk_mask];
  }

private:
  static constexpr unsigned chunk_bits = 10;
  static constexpr slot_t chunk_mask = (1u << chunk_bits) - 1;

  std::vector<std::unique_ptr<Record[]>> chunks_;
  std::size_t used_ = 0; ///< Slots ever given out.
  std::vector<slot_t> free_;
};

enum class phase : std::uint8_t {
  waiting,
  stranded, ///< Waiting, but larger than every live worker: out of line until a worker joins.
  running,
  ended,
};

/// One cache line: with a million of them each touch is a miss.
struct alignas(64) response_state {
  response_id id;
  slot_t group = no_slot;
  std::uint32_t prompt_tokens = 0;
  std::uint32_t tokens_max = 0;
  std::uint32_t tokens_done = 0;
  std::uint32_t attempt = 0; ///< Of the running chunk, or of the last one.

  slot_t worker = no_slot; ///< While running: the holder.
  std::uint32_t kv_reserved = 0;
  std::uint32_t place = 0; ///< Index in the holder's `running`.

  /// While waiting: the home, whose parked KV it is. While running: the source of a pull that is
  /// not confirmed, which may not let go yet.
  slot_t kv_worker = no_slot;
  std::uint32_t kv_blocks = 0;
  std::uint32_t kv_attempt = 0; ///< The attempt that left the KV there.
  /// While waiting: its rank in the home's `parked`, or index in the home's `spilled`. While
  /// running: index in the source's `pinned`.
  std::uint32_t kv_key = 0;

  std::uint16_t overtakes = 0; ///< Stops at its maximum.
  phase at = phase::waiting;
  bool probe : 1 = false;
  bool resident : 1 = false;    ///< While waiting: it has KV parked, in blocks.
  bool spilled : 1 = false;     ///< The KV at `kv_worker` is in its spill space, not in blocks.
  bool pull_failed : 1 = false; ///< The next chunk does not try a pull again.
  bool cut_asked : 1 = false;   ///< While running: its worker was told to cut the chunk.

  std::uint64_t context_tokens() const { return std::uint64_t{prompt_tokens} + tokens_done; }
};
static_assert(sizeof(response_state) == 64);

/// A waiting member of a group; the last of the vector goes first.
struct member_entry {
  std::uint32_t turn = 0; ///< `waiting_line::turn`: in mode context, tokens done.
  slot_t slot = no_slot;
  response_id id;
  /// The lowest turn last, so that taking the first is a pop; then the lowest id last.
  friend bool operator<(const member_entry& a, const member_entry& b) {
    return a.turn != b.turn ? a.turn > b.turn : a.id > b.id;
  }
};

struct group_state {
  group_id id;
  std::uint64_t sequence = 0; ///< Order of first submission.
  group_rules rules;
  std::uint32_t longest_finished = 0;
  std::uint32_t furthest = 0; ///< Most tokens at which a member's chunk ended and it did not.
  std::uint32_t told = 0;     ///< Length of its longest member, told at submission; 0: nobody did.
  std::uint64_t served = 0;   ///< Sum of its chunks' budgets, each over the live members then.
  std::uint64_t served_key = 0; ///< Its key among the served, while listed.
  bool served_listed = false;
  std::uint32_t live = 0; ///< Members not ended.
  std::vector<slot_t> members;
  std::vector<member_entry> waiting; ///< Without the probe.
  bool probed = false;               ///< It has, or had, a probe.
  bool measured = false; ///< A member has finished, so `longest_finished` says something.
  slot_t probe_waiting = no_slot;
  std::uint32_t ready_key = 0; ///< Its key in the line, while there.
  bool ready = false;
  bool bound = false; ///< static_: `bound_to` was given a worker.
  worker_id bound_to;
};

/// KV parked on a worker, in the order in which it is given up: lowest rank first, then highest id.
struct parked_entry {
  response_id id;
  std::uint32_t rank = 0;
  slot_t slot = no_slot;
  friend bool operator<(const parked_entry& a, const parked_entry& b) {
    return a.rank != b.rank ? a.rank < b.rank : a.id > b.id;
  }
};

struct worker_state {
  worker_id id;
  std::uint32_t kv_blocks = 0;
  std::uint32_t block_tokens = 1;
  std::uint32_t slots = 0;
  std::uint32_t kv_bytes_per_token = 0;
  kv_prices prices;
  std::uint64_t token_ns = 0; ///< That a response waits here for a token; 0: unknown.
  bool draining = false;
  std::uint32_t reserved_blocks = 0; ///< By running chunks.
  std::uint32_t parked_blocks = 0;   ///< All KV between chunks, pinned included.
  std::uint32_t pinned_blocks = 0;   ///< Sources of unconfirmed pulls: not to be evicted.
  std::uint32_t bound_groups = 0;    ///< static_.
  std::vector<slot_t> running;       ///< Responses whose chunk is here.
  std::vector<slot_t> pinned;        ///< Responses being pulled from here.
  std::vector<slot_t> spilled;       ///< Waiting responses whose KV is in its spill space.
  std::uint64_t spill_tokens = 0;    ///< Size of that space; 0: none.
  std::uint32_t spill_page_tokens = 1;
  std::uint64_t spilled_tokens = 0;     ///< In use there, pinned included.
  absl::btree_set<parked_entry> parked; ///< Of waiting responses.
  bool unsettled = false;               ///< It changed since it was indexed.

  std::uint32_t load() const { return static_cast<std::uint32_t>(running.size()); }
  bool open() const { return !draining && load() < slots; }
  std::uint32_t free_blocks() const { return kv_blocks - reserved_blocks - parked_blocks; }
  std::uint64_t spill_need(std::uint64_t context) const {
    return (context + spill_page_tokens - 1) / spill_page_tokens * spill_page_tokens;
  }
  std::uint64_t tokens(std::uint32_t blocks) const { return std::uint64_t{blocks} * block_tokens; }
  std::uint64_t free_tokens() const { return tokens(free_blocks()); }
  /// Room if every waiting response's KV here were given up.
  std::uint64_t yielding_tokens() const {
    return tokens(kv_blocks - reserved_blocks - pinned_blocks);
  }
};

} // namespace rollcast::policy
