#pragma once

#include "cluster/journal/sqlite.hpp"
#include "engine/base/error.hpp"
#include "engine/base/ids.hpp"
#include "engine/model/expert_layout.hpp"

#include <cstdint>
#include <span>

namespace rollcast::journal {

/// "Rlcj", in the header of the file: what makes a SQLite database one of ours.
inline constexpr std::uint32_t application_id = 0x526c636a;
inline constexpr std::uint64_t schema_version = 3;

/// Refuses a database that is not ours, is damaged or of a newer schema. An empty one passes if
/// `may_be_new`. Changes nothing. Fails with `bad_config`.
result<void> check_schema(database& db, bool may_be_new);

/// Makes the tables, or brings those of an older schema up to ours, step by step, each a
/// transaction. @pre `check_schema` passed. Fails with `bad_config`.
result<void> migrate(database& db);

/// The refusal of a database that cannot be read, with what to do about it.
error refusal(const database& db, const error& why);

// -- keys and values ------------------------------------------------------------------------------

/// Key of an edge: all of a response lie together, by position. A response has at most 2^22 tokens.
inline constexpr unsigned position_bits = 22;
inline constexpr std::uint64_t response_ids_max = std::uint64_t{1} << (63 - position_bits);
constexpr std::uint64_t edge_key(std::uint64_t response, std::uint32_t position) noexcept {
  return (response << position_bits) | position;
}

/// Check sum of an edge, so that damage to its bits is found: they are what a trainer gets.
std::uint64_t edge_check(std::uint64_t key, std::uint64_t version, blob tokens, blob logprobs,
                         blob kept_masses, blob experts) noexcept;

/// A layout as one number: layers * 2^32 + experts a token * 2^8 + bytes of an id.
std::uint64_t packed(const expert_layout& experts) noexcept;
expert_layout unpacked_experts(std::uint64_t number) noexcept;

} // namespace rollcast::journal
