#pragma once

#include "cluster/policy/limits.hpp"

#include <algorithm>
#include <cstdint>
#include <limits>

/// The arithmetic of the policy: pure functions of numbers, all saturating, none rounding down a
/// need.
namespace rollcast::policy {

constexpr std::uint64_t saturating_add(std::uint64_t a, std::uint64_t b) noexcept {
  std::uint64_t sum = 0;
  return __builtin_add_overflow(a, b, &sum) ? std::numeric_limits<std::uint64_t>::max() : sum;
}

constexpr std::uint64_t saturating_mul(std::uint64_t a, std::uint64_t b) noexcept {
  std::uint64_t product = 0;
  return __builtin_mul_overflow(a, b, &product) ? std::numeric_limits<std::uint64_t>::max()
                                                : product;
}

/// Returns the blocks that hold `tokens`. @pre block_tokens > 0
constexpr std::uint32_t blocks_for(std::uint64_t tokens, std::uint32_t block_tokens) noexcept {
  return static_cast<std::uint32_t>((tokens + block_tokens - 1) / block_tokens);
}

/// Returns how many tokens the next chunk may generate. @pre tokens_done < tokens_max
constexpr std::uint32_t chunk_budget(std::uint32_t chunk_tokens, std::uint32_t tokens_done,
                                     std::uint32_t tokens_max) noexcept {
  const auto rest = tokens_max - tokens_done;
  return chunk_tokens == 0 ? rest : std::min(chunk_tokens, rest);
}

/// Returns up to how many generated tokens room is reserved for a chunk that ends at `end`: to the
/// next multiple of `step`, so that a response that goes on needs no more than it has.
constexpr std::uint64_t reserved_tokens(std::uint64_t end, std::uint32_t tokens_max,
                                        std::uint32_t step) noexcept {
  const auto whole = step == 0 ? end : (end + step - 1) / step * step;
  return std::min<std::uint64_t>(whole, tokens_max);
}

/// Returns how many tokens a response is expected to run on: a group is expected to be as long as
/// its longest finished member, a response never shorter than it already is. 0 says only that it
/// has outrun every sibling.
constexpr std::uint32_t expected_remaining(std::uint32_t estimate, std::uint32_t tokens_done,
                                           std::uint32_t tokens_max) noexcept {
  const auto length = std::min(estimate, tokens_max);
  return length > tokens_done ? length - tokens_done : 0;
}

/// Nanoseconds to bring `tokens` of KV back from spill space.
constexpr std::uint64_t restore_ns(std::uint64_t tokens, std::uint32_t kv_bytes_per_token,
                                   const kv_prices& prices) noexcept {
  const auto bytes = saturating_mul(tokens, kv_bytes_per_token);
  return saturating_mul(bytes, prices.restore_ps_per_byte) / 1000;
}

/// Returns whether moving `tokens` of KV is cheaper than computing them again; a tie moves.
/// @param target      Prices of the worker that pulls, or computes.
/// @param spilled_at  Prices of the source if it must bring them back first, else null.
constexpr bool moving_is_cheaper(std::uint64_t tokens, std::uint32_t kv_bytes_per_token,
                                 const kv_prices& target, const kv_prices* spilled_at) noexcept {
  const auto bytes = saturating_mul(tokens, kv_bytes_per_token);
  auto move =
    saturating_add(target.move_fixed_ns, saturating_mul(bytes, target.move_ps_per_byte) / 1000);
  if (spilled_at != nullptr)
    move = saturating_add(move, restore_ns(tokens, kv_bytes_per_token, *spilled_at));
  return move <= saturating_mul(tokens, target.recompute_ns_per_token);
}

/// Returns whether KV that must leave its blocks should be spilled, not dropped: bringing it back
/// is cheaper than computing it again.
constexpr bool spilling_pays(std::uint64_t tokens, std::uint32_t kv_bytes_per_token,
                             const kv_prices& prices) noexcept {
  return restore_ns(tokens, kv_bytes_per_token, prices)
         <= saturating_mul(tokens, prices.recompute_ns_per_token);
}

} // namespace rollcast::policy
