#pragma once

#include "engine/step/engine.hpp"

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

namespace rollcast::test {

/// What a response must be equal in, however it was scheduled.
struct finished_response {
  std::vector<token_id> prompt;
  std::vector<token_id> tokens;
  std::vector<float> logprobs;
  std::vector<float> kept_masses;
  std::vector<std::byte> experts; ///< Ids, when they are asked for.
  chunk_end why{};
  float temperature = 1.0f;
};

/// Equal to the bit; NaN equals NaN of the same bits.
bool same_bits(const finished_response& a, const finished_response& b);

/// A rollout to do: requests whose `generate_max` and `reserve` the driver sets.
using rollout = std::vector<chunk_request>;

/// Prompts of mixed lengths with mixed sampling (temperatures 0, 0.8 and 1, filters on and off),
/// from a seed.
rollout mixed_rollout(std::uint32_t vocabulary, std::size_t responses, std::uint32_t new_tokens,
                      std::uint64_t seed);

/// What happens to a response's KV between two chunks.
enum class between_chunks : std::uint8_t { keep, drop, move };

/// How to drive the engines; none of it may change a bit.
struct drive {
  std::uint32_t chunk_tokens = 0; ///< 0: unlimited.
  bool reserve = true;
  between_chunks kv = between_chunks::keep;
  std::uint32_t cut_every = 0; ///< Steps after which all chunks of an engine are cut; 0: never.
};

/// Runs the rollout over one or more engines (responses start round robin; `move` sends a response
/// to the next engine at every chunk edge) and returns the responses by id.
std::map<std::uint64_t, finished_response>
run_rollout(const rollout& work, std::vector<engine>& engines, const drive& how);

} // namespace rollcast::test
