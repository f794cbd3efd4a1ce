#pragma once

#include "cluster/policy/view.hpp"

#include <cstdint>

namespace rollcast::policy {

/// Every bound and every weight of the policy. All are integers: no float decides.
struct policy_limits {
  group_rules rules = {}; ///< For groups that bring none of their own.

  std::uint32_t responses_max = 4'000'000; ///< Known responses, ended ones of open groups included.
  std::uint32_t workers_max = 65'536;      ///< Live workers.
  /// Decisions of one call of `plan` (the last placement may add the evictions it needs).
  std::uint32_t decisions_per_plan = 4096;

  /// Room is reserved up to the next multiple of so many generated tokens, chunks being shorter or
  /// not; 1 reserves what the chunk needs.
  std::uint32_t reserve_tokens = 1024;
  /// Every n-th placement goes to the group served least for each live member; 0 turns the rule
  /// off.
  std::uint32_t fair_every = 3;
  /// A group is expected to be as long as so many times its furthest unfinished member.
  std::uint32_t outlook = 3;
  /// A response keeps its home while home runs at most this many more than the least loaded.
  std::uint32_t home_spread = 4;
  /// KV stays where it is rather than make room for a response ahead by at most this many tokens.
  std::uint32_t resident_bonus_tokens = 4096;
  /// How many groups that fit nowhere one plan looks past.
  std::uint32_t pass_over_max = 16;
  /// A response overtaken this often is overtaken no more: the plan ends at it.
  std::uint32_t overtakes_max = 256;

  /// When nothing waits, a chunk on a worker that takes so many times as long for a token as
  /// another with room is cut, and goes on there; 0 turns the rule off.
  std::uint32_t slow_factor = 3;

  /// Until a worker has measured its own: 1 GB/s, and a small model on two cores.
  kv_prices prices = {.move_fixed_ns = 1'000'000,
                      .move_ps_per_byte = 1'000,
                      .restore_ps_per_byte = 1'000,
                      .recompute_ns_per_token = 700'000};
};

} // namespace rollcast::policy
