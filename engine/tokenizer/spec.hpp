#pragma once

#include "engine/base/error.hpp"
#include "engine/base/ids.hpp"
#include "engine/tokenizer/added_tokens.hpp"

#include <filesystem>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

namespace rollcast {

/// What a `tokenizer.json` says, checked for what is supported but not yet for whether its parts
/// agree with each other.
struct tokenizer_spec {
  bool nfc = false;                     ///< The normalizer is NFC.
  std::vector<std::string> split_pcre2; ///< Patterns that cut the text, in order, for PCRE2.
  std::string byte_level_pcre2;         ///< Cuts after the space is in front; empty: does not cut.
  bool add_prefix_space = false;        ///< Each piece gets a space in front if it has none.
  bool ignore_merges = false;           ///< A piece that is a token as it is stays whole.
  std::unordered_map<std::string, token_id> vocabulary;    ///< By token in the byte-level alphabet.
  std::vector<std::pair<std::string, std::string>> merges; ///< By rank.
  std::vector<added_token> added_tokens;
  std::vector<token_id> prefix; ///< What the post-processor puts before a text.
  std::vector<token_id> suffix; ///< And after it.
};

/// Ids above this are refused: tables are indexed by id, and the largest vocabulary in use has
/// 2^18 tokens.
inline constexpr token_id largest_token_id = (1 << 22) - 1;

/// Reads and checks the file.
///
/// @returns `bad_tokenizer`, one line that starts with the path.
[[nodiscard]] result<tokenizer_spec> read_spec(const std::filesystem::path& file);

} // namespace rollcast
