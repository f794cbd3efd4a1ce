#pragma once

#include "engine/base/ids.hpp"

#include <cstdint>
#include <optional>
#include <variant>

/// What the policy is told and what it answers: the whole vocabulary between the pure core and its
/// shell. Counts are tokens or KV blocks, as the name says; nothing here is a time.
namespace rollcast::policy {

/// How the responses of a group are placed.
enum class mode : std::uint8_t {
  static_, ///< Whole groups bound to workers round robin, no chunks: what a plain system does.
  context, ///< Chunks, probes first, then the longest expected remainder.
  divided, ///< Chunks in order of submission: what chunks and room buy without knowing lengths.
  oracle,  ///< Chunks, longest remainder first by `tokens_expected`: the bound for `context`.
};

/// What a group is run under, fixed by the first response of it that is submitted.
struct group_rules {
  mode how = mode::context;
  std::uint32_t chunk_tokens = 1024; ///< Longest chunk; 0 is unlimited.
  /// Test mode: no chunk runs where the one before it ended, even if it must wait for another
  /// worker. Only when no other live, not draining worker is large enough it goes on there.
  bool force_migration = false;
  bool probe_first = true; ///< context: rule 1 is on.
  friend bool operator==(const group_rules&, const group_rules&) = default;
};

// -- what happened --------------------------------------------------------------------------------

/// A worker is ready for work. Its id names this incarnation: one that was declared lost drops all
/// it holds and joins under a new id, so old news cannot be mistaken for new.
struct worker_joined {
  worker_id worker;
  std::uint32_t kv_blocks;              ///< What it can hold, running and parked together.
  std::uint32_t block_tokens;           ///< Tokens of one block.
  std::uint32_t slots;                  ///< Responses it may hold running or queued at once.
  std::uint32_t kv_bytes_per_token = 0; ///< Prices a move of KV.
  std::uint64_t spill_tokens = 0;       ///< KV that it can keep beside its blocks; 0: none.
  std::uint32_t spill_page_tokens = 1;  ///< What a response takes of that is whole pages.
};

/// What it costs a worker to have the KV of a response again. In an event a price of 0 says that it
/// is not known; `move_fixed_ns` goes with `move_ps_per_byte`.
struct kv_prices {
  std::uint64_t move_fixed_ns = 0;          ///< Of any pull to it, however small.
  std::uint64_t move_ps_per_byte = 0;       ///< Of a pull to it; 1000 is 1 GB/s.
  std::uint64_t restore_ps_per_byte = 0;    ///< Into its spill space and back.
  std::uint64_t recompute_ns_per_token = 0; ///< Of prefill on it.
  friend bool operator==(const kv_prices&, const kv_prices&) = default;
};

/// A worker has measured. What it does not know is priced by `policy_limits::prices`.
struct worker_priced {
  worker_id worker;
  kv_prices prices;
};

/// How long a response that runs on the worker has lately waited for a token. Whatever makes it
/// slow (its load included), a response that leaves for a faster one gains that.
struct worker_paced {
  worker_id worker;
  std::uint64_t token_ns; ///< 0 is unknown.
};

struct worker_lost {
  worker_id worker;
};

/// The worker takes no new chunks. What runs there may end; what is parked there may be pulled.
struct worker_draining {
  worker_id worker;
};

/// A response that wants to run. Index 0 is its group's probe.
struct response_submitted {
  response_id response;
  group_id group;
  std::uint32_t index;
  std::uint32_t prompt_tokens;
  std::uint32_t tokens_max;              ///< Limit of generated tokens.
  std::uint32_t tokens_done = 0;         ///< Above 0 when a journal brought the response back.
  std::optional<group_rules> rules = {}; ///< Absent: those of `policy_limits`.
  /// oracle: the length that it will have, known only to simulations and replays. context: the
  /// length that its group's longest member is expected to have, from whoever knows. 0 is unknown.
  std::uint32_t tokens_expected = 0;
};

/// A worker ended a chunk. If it is not `complete` and `kv_kept`, the KV of prompt and tokens stays
/// parked there; otherwise the worker holds nothing of the response any more.
struct chunk_finished {
  response_id response;
  worker_id worker;
  std::uint32_t attempt;
  std::uint32_t tokens_done; ///< Of the response in all, not of this chunk.
  bool complete;             ///< The response ended, not just this chunk.
  bool kv_kept;
};

/// A chunk could not be started (no blocks, a failed pull). The worker holds nothing of it now.
struct chunk_failed {
  response_id response;
  worker_id worker;
  std::uint32_t attempt;
};

/// The target of a pull has imported and checked the KV: the source may let go.
struct kv_moved {
  response_id response;
  worker_id worker; ///< The target.
  std::uint32_t attempt;
};

/// A worker no longer holds KV that it had parked or spilled. `attempt` is the one that left it
/// there, so that a late copy of this news cannot hide KV parked since.
struct kv_lost {
  response_id response;
  worker_id worker;
  std::uint32_t attempt;
};

struct response_cancelled {
  response_id response;
};

/// Every response of the group has been delivered, or nobody wants the rest: what still lives of
/// it is cancelled and the policy forgets all but that the group is over.
struct group_closed {
  group_id group;
};

using event = std::variant<worker_joined, worker_priced, worker_paced, worker_lost, worker_draining,
                           response_submitted, chunk_finished, chunk_failed, kv_moved, kv_lost,
                           response_cancelled, group_closed>;

/// What became of an event.
enum class verdict : std::uint8_t {
  accepted,
  stale,   ///< Old news: the response, worker or group has moved on. Nothing changed.
  refused, ///< A limit said no (`scheduler_policy::last_refusal`). Nothing changed.
};

/// Why an event was refused.
enum class refusal_reason : std::uint8_t {
  none,
  responses_full,    ///< `wanted` responses, `allowed` by policy_limits::responses_max.
  workers_full,      ///< `wanted` workers, `allowed` by policy_limits::workers_max.
  larger_than_fleet, ///< `wanted` tokens of KV, `allowed` on the largest worker.
  bad_numbers,       ///< `wanted` breaks what the event promises; `allowed` is the bound.
};

struct refusal {
  refusal_reason reason = refusal_reason::none;
  std::uint64_t wanted = 0;
  std::uint64_t allowed = 0;
};

// -- what to do about it --------------------------------------------------------------------------

/// Where the KV of a chunk comes from.
enum class kv_source : std::uint8_t {
  resume,    ///< On the worker itself, parked or spilled.
  pull,      ///< On `from`, which keeps it until `kv_moved` or the end of the chunk.
  recompute, ///< Prefill of prompt and tokens done.
};

/// Run `tokens_now` more tokens of `response` on `worker`. A worker ignores a dispatch whose
/// attempt is not above every attempt of that response that it has seen.
struct dispatch {
  response_id response;
  worker_id worker;
  std::uint32_t attempt; ///< 1 for the first; names this chunk in every report about it.
  std::uint32_t tokens_now;
  kv_source kv;
  worker_id from;          ///< The source of a pull; 0 otherwise.
  std::uint32_t kv_blocks; ///< Reserved for it; 0: none, the worker grows and preempts by itself.
  friend bool operator==(const dispatch&, const dispatch&) = default;
};

/// Drop what `worker` holds of `response` from attempts up to `attempt`: parked KV, and a chunk
/// that still runs (a cancelled one).
struct release {
  worker_id worker;
  response_id response;
  std::uint32_t attempt;
  friend bool operator==(const release&, const release&) = default;
};

/// Move the KV of `response` that attempt `attempt` left parked on `worker` out of its blocks, into
/// its spill space. The worker stays its home: a resume or a pull takes the KV from there.
struct spill {
  worker_id worker;
  response_id response;
  std::uint32_t attempt;
  friend bool operator==(const spill&, const spill&) = default;
};

/// End that chunk at an edge where it stands: another worker goes on much faster.
struct cut {
  worker_id worker;
  response_id response;
  std::uint32_t attempt;
  friend bool operator==(const cut&, const cut&) = default;
};

/// Decisions for one worker must reach it in the order given: room that a release or a spill makes
/// is used by the dispatch behind it.
using decision = std::variant<release, dispatch, spill, cut>;

} // namespace rollcast::policy
