#pragma once

#include "engine/base/hash.hpp"
#include "engine/draft/drafter.hpp"
#include "engine/step/request.hpp"

#include <cstddef>
#include <cstdint>
#include <vector>

namespace rollcast {

/// Where a response stands inside one engine.
enum class sequence_state : std::uint8_t {
  waiting, ///< Admitted; takes no part in steps yet.
  running, ///< Takes part in every step.
  parked,  ///< Between two chunks: only its KV is here.
};

/// One response inside the engine: its tokens, the KV blocks that hold a prefix of them, and what
/// is left of its chunk.
struct sequence {
  response_id id;
  sequence_state state = sequence_state::waiting;
  std::uint64_t arrival = 0; ///< Order of admission; the latest is preempted first.

  std::vector<token_id> tokens;
  std::uint32_t prompt_tokens = 0;
  sampling_params sampling;
  std::vector<token_id> stop_ids; ///< What ends the response: the model's ids and the request's.
  std::uint32_t length_max = 0;   ///< Tokens at which the response ends by length.
  std::uint32_t chunk_end = 0;    ///< Tokens at which the chunk's budget is used up.
  std::uint32_t chunk_begin = 0;  ///< Tokens that there were when the chunk was admitted.
  bool reserve = true;

  std::vector<std::uint32_t> blocks;
  std::uint32_t cached = 0;        ///< Positions whose KV is in `blocks`.
  std::uint32_t first_prefill = 0; ///< Positions below it were computed before, somewhere.
  std::uint32_t step_rows = 0;     ///< Positions it computes in the step being built.
  std::uint32_t row_begin = 0;     ///< Of the pass: its first row; those of its draft follow.
  content_hash prefix;             ///< Of the cached tokens; kept while parked.
  std::vector<draft_token> draft;  ///< What the step being built verifies.
  std::uint32_t draft_room = 0;    ///< Most tokens of one of its paths.
  std::uint32_t blocks_owned = 0;  ///< Of `blocks`; any behind are borrowed for branches.
  std::uint32_t first_spare = 0;   ///< In `blocks`: the first that no position of the step needs.
  std::uint32_t first_branch = 0;  ///< In the engine's list, while the step is built.
  std::uint32_t end_branch = 0;

  std::vector<float> logprobs;     ///< Of this chunk's tokens.
  std::vector<float> kept_masses;  ///< Of this chunk's tokens.
  bool keeps_experts = false;      ///< Ids of experts are asked for,
  std::uint32_t experts_begin = 0; ///< in this chunk from this position on,
  std::uint32_t experts_end = 0;   ///< and kept up to this one.
  std::vector<std::byte> experts;  ///< Of positions [experts_begin, experts_end).

  std::uint32_t size() const noexcept { return static_cast<std::uint32_t>(tokens.size()); }
  std::uint32_t generated() const noexcept { return size() - prompt_tokens; }
  /// Positions that must be computed before the next token can be chosen.
  std::uint32_t pending() const noexcept { return size() - cached; }
};

} // namespace rollcast
