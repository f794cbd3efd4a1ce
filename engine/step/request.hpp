#pragma once

#include "engine/base/ids.hpp"

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

namespace rollcast {

/// How the tokens of a response are chosen, and when it ends. Part of what a response is a function
/// of, so nothing here may depend on how the response is scheduled.
struct sampling_params {
  float temperature = 1.0f;         ///< >= 0; 0 is argmax.
  float top_p = 1.0f;               ///< (0, 1]; 1 is off.
  std::uint32_t top_k = 0;          ///< 0 is off.
  float min_p = 0.0f;               ///< [0, 1]; 0 is off.
  std::uint32_t max_new_tokens = 1; ///< >= 1.
  std::uint32_t min_new_tokens = 0; ///< Stop ids are not chosen before so many tokens.
  std::uint64_t seed = 0;           ///< The response's own seed (`response_seed`).
  bool ignore_eos = false;          ///< Only `stop_token_ids` stop, not the model's own.
  std::vector<token_id> stop_token_ids;
};

/// Work for the engine: generate up to `generate_max` more tokens of one response.
struct chunk_request {
  response_id response;
  std::vector<token_id> tokens;    ///< The prompt, then what was generated so far.
  std::uint32_t prompt_tokens = 0; ///< How many of `tokens` are the prompt; >= 1.
  sampling_params sampling;
  std::uint32_t generate_max = 0; ///< This chunk's budget; >= 1.
  /// True: KV blocks for the whole chunk are taken at once, so the chunk is never preempted.
  /// False: the response takes blocks as it grows and may be preempted (mode `static`).
  bool reserve = true;
  /// Report the ids of the experts that the router chose, from this position on; none: of nowhere.
  std::optional<std::uint32_t> experts_from = {};
};

/// Why the engine stopped generating.
enum class chunk_end : std::uint8_t {
  budget, ///< The chunk is used up, the response is not; its KV stays parked.
  stop,   ///< The last token is a stop id; it is part of the response.
  length, ///< `max_new_tokens` or the context is used up.
};

/// What became of a chunk.
struct chunk_report {
  response_id response;
  chunk_end why{};
  std::span<const token_id> tokens;   ///< New tokens of this chunk.
  std::span<const float> logprobs;    ///< One for each new token.
  std::span<const float> kept_masses; ///< One for each new token; all 1 when no filter is on.
  /// Of `routed_positions` of the new tokens, as the device's `expert_layout`; empty unless asked
  /// for.
  std::span<const std::byte> experts = {};
};

/// Where the engine's time and rows went, since it was made.
struct engine_stats {
  std::uint64_t steps = 0;
  std::uint64_t rows = 0;              ///< Activation rows over all steps.
  std::uint64_t prompt_tokens = 0;     ///< Prefilled for the first time.
  std::uint64_t recomputed_tokens = 0; ///< Prefilled again, because their KV was gone.
  std::uint64_t generated_tokens = 0;
  std::uint64_t preemptions = 0;
  std::uint64_t draft_tokens = 0;    ///< Drafted and verified.
  std::uint64_t accepted_tokens = 0; ///< Of those: right.
  std::uint64_t verifications = 0;   ///< Times that a response had a draft verified.
  std::uint64_t busy_ns = 0;         ///< Inside `step`, when there was something to do.
};

/// Where the engine's KV blocks are.
struct kv_usage {
  std::uint32_t total = 0;
  std::uint32_t free = 0;
  std::uint32_t running = 0; ///< Held by admitted responses.
  std::uint32_t parked = 0;  ///< Held by responses between two chunks.
};

} // namespace rollcast
