#pragma once

#include "engine/base/error.hpp"
#include "engine/base/ids.hpp"
#include "engine/model/expert_layout.hpp"

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

namespace rollcast::cli {

/// Tokens [start, end) of a response that one weight version made.
struct version_span {
  std::uint64_t version = 0;
  std::uint32_t start = 0;
  std::uint32_t end = 0;
};

/// Ids of the experts that positions from `start` on were sent to: [positions, layers, per_token]
/// of `id_bytes` little-endian bytes.
struct routed_experts {
  std::uint32_t start = 0;
  expert_layout layout;
  std::string ids;
};

/// One line of responses.jsonl. Nothing in it depends on how the run was scheduled.
struct response_record {
  std::uint64_t group = 0;
  std::uint32_t index = 0;
  std::string id; ///< The prompt's id; left out when empty.
  std::vector<token_id> prompt_token_ids;
  std::vector<token_id> token_ids;
  std::vector<float> logprobs;
  std::vector<float> kept_masses; ///< Left out when empty (no filter was on).
  std::string finish_reason;      ///< stop, length or cancelled.
  std::vector<version_span> weight_versions;
  std::uint64_t seed = 0; ///< Of this response.
  float temperature = 1.0f;
  std::string numerics_profile;
  std::optional<routed_experts> experts; ///< When they were asked for.
  std::optional<std::string> text;       ///< When the model has a tokenizer.
};

/// One line of JSON, without the newline. Floats are the shortest decimals that read back to the
/// same bits; invalid UTF-8 in `text` becomes U+FFFD.
std::string to_line(const response_record& record);

/// Reads what `to_line` wrote; `where` (file:line) begins the message of a failure, `bad_prompt`.
result<response_record> from_line(const std::string& line, const std::string& where);

/// Reads a responses.jsonl. Fails with `io_failed` or `bad_prompt` and file:line.
result<std::vector<response_record>> read_responses(const std::filesystem::path& path);

} // namespace rollcast::cli
