#pragma once

#include "engine/base/error.hpp"
#include "engine/base/ids.hpp"

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace rollcast {

/// A group as workers and draft server name it: a hash of the scheduler's number for it and of its
/// prompt. A scheduler that was started again counts from 1 again, and means other groups.
using draft_group = strong_id<struct draft_group_tag>;

/// Returns the name of a group. `prompt` is what all its members begin with.
draft_group draft_group_of(group_id group, std::span<const token_id> prompt) noexcept;

/// What one message between a worker and the draft server says.
enum class draft_message : std::uint8_t {
  follow = 1,   ///< Worker: I host members of the group, and know so much of each.
  unfollow = 2, ///< Worker: I do no longer.
  tokens = 3,   ///< Either: what a response has written from `position` on.
  want = 4,     ///< Either: something is missing, send from `position` on.
  unknown = 5,  ///< Server: I do not know that group, nobody has told me to keep it.
};

/// How much of a response a worker knows.
struct draft_extent {
  response_id response;
  std::uint32_t known = 0;   ///< Its drafter has the tokens before this position.
  std::uint32_t written = 0; ///< And has sent those before this one, which it can send again.
  friend bool operator==(const draft_extent&, const draft_extent&) = default;
};

/// Age of tokens that were not sent when they were written, but to close a gap.
inline constexpr std::uint32_t draft_age_replayed = 0xffff'ffff;

/// One message. Positions count from the first token of the prompt, everywhere: a response's stream
/// is its prompt and what was generated. So a position is also the sequence number that tells a
/// receiver whether something is missing or here already.
struct draft_frame {
  draft_message kind{};
  std::uint64_t incarnation = 0; ///< Of the server that sends it; 0 from a worker.
  draft_group group = {};
  response_id response = {};           ///< In `tokens` and `want`.
  std::uint32_t position = 0;          ///< In `tokens` and `want`.
  std::uint32_t age_us = 0;            ///< In `tokens`: what the oldest waited to be sent.
  std::vector<token_id> tokens = {};   ///< In `tokens`: at least one.
  std::vector<draft_extent> ends = {}; ///< In `follow`.
  friend bool operator==(const draft_frame&, const draft_frame&) = default;
};

inline constexpr std::uint32_t draft_frame_magic = 0x31464452; // "RDF1"
inline constexpr std::size_t draft_frame_tokens_max = 4'096;
inline constexpr std::size_t draft_frame_ends_max = 4'096;
/// A position is below this, so sums of two of them do not overflow.
inline constexpr std::uint32_t draft_position_max = 1u << 30;
/// No valid frame is longer.
inline constexpr std::size_t draft_frame_bytes_max = 24 + 4 + 16 * draft_frame_ends_max;

/// Little-endian, no padding: magic, kind, three zero bytes, incarnation, group, and what the kind
/// has. The frame must be within the bounds above.
std::string encode(const draft_frame& frame);

/// Fails with `frame_malformed` (detail: which field and its value): a wrong magic, kind or length,
/// a negative token, a position or count out of bounds.
result<draft_frame> decode_draft_frame(std::span<const std::byte> bytes);

} // namespace rollcast
