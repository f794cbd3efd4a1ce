#pragma once

#include "cluster/wire/messages.hpp"

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

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
  /// Data of a weight bucket. Half a message, so that names and shapes always fit beside it.
  std::size_t bucket_bytes = std::size_t{32} << 20;
  std::size_t slices = 4'096; ///< Of a bucket.
  std::size_t tensor_name_bytes = 512;
  std::size_t tensor_dims = 8;
  std::uint64_t tensor_bytes = std::uint64_t{1} << 36; ///< Of one tensor, as its shape says.
  std::size_t directory_bytes = 4'096;
  std::size_t sequences = 65'536;       ///< Of one Score.
  std::size_t scored_tokens = 1u << 22; ///< Of all its sequences, so that the answer fits.
  std::uint32_t expert_layers = 4'096;  ///< Of a model whose experts' ids are returned.
  std::uint32_t experts_per_token = 1'024;
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

/// Checks what one bucket says of itself: its number, names, shapes, sizes, and that each slice is
/// whole elements within its tensor. @returns `bad_checkpoint` with the slice and the numbers, or
/// `frame_too_large` (too much for one bucket).
[[nodiscard]] result<void> validate(const weight_bucket& bucket);

/// Checks that the directory is a path: 1 to `directory_bytes` bytes without control characters.
/// @returns `bad_config`.
[[nodiscard]] result<void> validate(const load_weights& load);

/// Checks the sequences: at least one, none longer or more than the limits, each with a prompt.
/// @returns `bad_prompt`, `bad_sampling` (temperature) or `frame_too_large`, with the sequence.
[[nodiscard]] result<void> validate(const score& what);

/// True when there is a byte that must not get into a log line or a file.
[[nodiscard]] bool has_control_character(std::string_view text) noexcept;

/// Returns at most `most` bytes of UTF-8, cut between characters: a peer cannot read a line with
/// half a character in it.
[[nodiscard]] std::string clipped(std::string_view text, std::size_t most);

/// Returns the line about a tensor of so many dimensions.
[[nodiscard]] std::string too_many_dims(std::size_t dims);

/// Checks a temperature. @returns what is wrong with it, "" for nothing.
[[nodiscard]] std::string wrong_with_temperature(float temperature);

/// @returns `code` for the first negative id; `what` begins the line: "group 3: prompt".
[[nodiscard]] result<void> validate_tokens(const std::vector<token_id>& tokens, errc code,
                                           const std::string& what);

} // namespace rollcast::wire
