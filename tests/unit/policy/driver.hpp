#pragma once

#include "cluster/policy/scheduler_policy.hpp"

#include <gtest/gtest.h>

#include <cstdint>
#include <optional>
#include <vector>

namespace rollcast::policy {

/// Speaks to a policy in few words, and expects every event to be accepted.
struct driver {
  scheduler_policy policy;

  explicit driver(policy_limits limits = {}) : policy(limits) {}

  void tell(const event& e) { EXPECT_EQ(policy.on(e), verdict::accepted); }
  void join(std::uint64_t worker, std::uint32_t kv_blocks, std::uint32_t slots = 100,
            std::uint64_t spill_tokens = 0) {
    tell(worker_joined{worker_id{worker}, kv_blocks, 10, slots, 1000, spill_tokens});
  }
  /// A prompt of 10 tokens, which is one block.
  void submit(std::uint64_t response, std::uint64_t group, std::uint32_t index,
              std::uint32_t tokens_max = 100) {
    tell(response_submitted{response_id{response}, group_id{group}, index, 10, tokens_max});
  }
  std::vector<dispatch> dispatches() {
    std::vector<dispatch> out;
    releases.clear();
    spills.clear();
    for (const auto& d : policy.plan())
      if (const auto* started = std::get_if<dispatch>(&d))
        out.push_back(*started);
      else if (const auto* dropped = std::get_if<release>(&d))
        releases.push_back(*dropped);
      else
        spills.push_back(std::get<spill>(d));
    return out;
  }
  /// The one dispatch that the plan must hold.
  dispatch dispatched() {
    const auto out = dispatches();
    EXPECT_EQ(out.size(), 1u);
    return out.empty() ? dispatch{} : out.front();
  }
  /// Responses in the order in which the plan starts them.
  std::vector<std::uint64_t> order() {
    std::vector<std::uint64_t> out;
    for (const auto& d : dispatches())
      out.push_back(d.response.value);
    return out;
  }
  void edge(const dispatch& d, std::uint32_t tokens_done, bool kept = true) {
    tell(chunk_finished{d.response, d.worker, d.attempt, tokens_done, false, kept});
  }
  void complete(const dispatch& d, std::uint32_t tokens_done) {
    tell(chunk_finished{d.response, d.worker, d.attempt, tokens_done, true, false});
  }

  std::vector<release> releases; ///< Of the latest plan.
  std::vector<spill> spills;     ///< Of the latest plan.
};

/// Limits under which only the rule under test moves anything.
inline policy_limits plain_limits(std::uint32_t chunk_tokens = 10) {
  policy_limits limits;
  limits.rules.chunk_tokens = chunk_tokens;
  limits.reserve_tokens = 1;
  limits.fair_every = 0;
  limits.resident_bonus_tokens = 0;
  return limits;
}

} // namespace rollcast::policy
