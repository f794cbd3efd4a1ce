#pragma once

#include "cluster/wire/messages.hpp"
#include "engine/base/error.hpp"
#include "engine/model/expert_layout.hpp"

#include <cstdint>
#include <optional>
#include <string>

namespace rollcast {

/// What every worker of a cluster must agree on, and what a batch is checked against.
struct cluster_model {
  std::string numerics_profile;
  std::uint64_t weight_version = 0;
  std::uint32_t vocabulary = 0;
  std::uint32_t context_max = 0;   ///< Tokens of prompt and response.
  std::uint64_t kv_tokens_max = 0; ///< What the largest worker's KV blocks hold.
  /// Without layers, of a dense model; none: not known, until a worker is back.
  std::optional<expert_layout> experts = expert_layout{};
};

/// Returns how many tokens a response may have: its own limit, or what the context leaves.
std::uint32_t tokens_max(const wire::sampling_params& sampling, std::size_t prompt_tokens,
                         std::uint32_t context_max) noexcept;

/// Checks what only the cluster can know about a batch that is valid in itself. Fails with
/// `bad_prompt` (too long for the context or for any worker's KV, ids past the vocabulary),
/// `bad_sampling` (stop ids), `bad_config` (policy; ids of experts of a model that has none, or so
/// many that a result fits no message), or `stale_epoch` (another weight version), with the group's
/// number and the numbers.
result<void> check_batch(const wire::submit_batch& spec, const cluster_model& model);

/// Checks a policy's name. Empty is the scheduler's own. Fails with `bad_config`.
result<void> check_policy(const std::string& name);

} // namespace rollcast
