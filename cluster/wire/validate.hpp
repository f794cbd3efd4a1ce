#pragma once

#include "cluster/wire/messages.hpp"

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace rollcast::wire {

inline constexpr std::uint32_t protocol_version = 1;

/// Bounds of what one request may ask for. They keep one controller from exhausting the scheduler;
/// what a model or a cluster can take is checked later, by those who know it.
struct request_limits {
  std::size_t message_bytes = std::size_t{64} << 20; ///< Both directions; also ZMQ_MAXMSGSIZE.
  std::size_t groups = 65'536;
  std::uint32_t group_size = 65'536;
  std::uint64_t responses = 1'000'000;
  std::uint32_t new_tokens = 1u << 22; ///< So that the longest response fits one message.
  std::size_t stop_tokens = 256;
  std::size_t key_bytes = 128; ///< Of batch keys and policy names.
  std::size_t id_bytes = 1'024;
};

inline constexpr request_limits limits{};

/// Checks every bound and range of a batch. @returns `bad_prompt` (groups, prompts, ids, sizes),
/// `bad_sampling`, `bad_config` (key, policy) or `frame_too_large` (too much for one batch), with
/// the group's number and the numbers.
[[nodiscard]] result<void> validate(const submit_batch& batch);

/// Checks one set of sampling parameters; `where` begins the line of a refusal: "group 3".
/// NaN and infinities are refused, and a temperature between 0 and 1e-6, which would overflow
/// logits / temperature. @returns `bad_sampling`.
[[nodiscard]] result<void> validate(const sampling_params& sampling, std::string_view where);

/// Checks a batch key: 1 to `key_bytes` bytes, none of them a control character. @returns
/// `bad_config`.
[[nodiscard]] result<void> validate_batch_key(std::string_view key);

} // namespace rollcast::wire
