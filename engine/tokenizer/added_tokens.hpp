#pragma once

#include "engine/base/ids.hpp"

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace rollcast {

/// One entry of `added_tokens`: a string that is cut out of the text before anything else.
struct added_token {
  std::string content;
  token_id id = -1;
  bool special = false;
  bool lstrip = false;      ///< Swallows the white space before it.
  bool rstrip = false;      ///< Swallows the white space after it.
  bool single_word = false; ///< Only where no word character touches it.
  bool normalized = false;  ///< Looked for in the normalized text.
};

/// A stretch of text, or an added token in its place.
struct text_part {
  std::string_view text; ///< Empty for a token.
  token_id token = -1;   ///< -1 for text.
};

/// Finds added tokens in text: leftmost first, the longest where several start.
///
/// Source:  `AddedVocabulary` of the reference, whose order of the strip rules this follows.
class added_token_finder {
public:
  /// @param tokens  Contents must not be empty; of two with the same content the first wins.
  explicit added_token_finder(std::vector<added_token> tokens = {});

  [[nodiscard]] bool empty() const noexcept { return tokens_.empty(); }

  /// Cuts `text` into text and tokens, in order; no part of text is empty.
  ///
  /// Cost:    O(n m) for the longest token of m bytes; about one look-up a byte in plain text.
  [[nodiscard]] std::vector<text_part> split(std::string_view text) const;

private:
  struct node {
    std::int32_t token = -1; // index into tokens_ of the token that ends here
    std::unordered_map<char, std::size_t> next;
  };

  /// The longest token at the start of `text`, or none.
  [[nodiscard]] const added_token* longest_at_start(std::string_view text) const;

  std::vector<added_token> tokens_;
  std::vector<node> nodes_; // a trie over bytes; the first is the root
  std::array<bool, 256> may_start_{};
};

} // namespace rollcast
