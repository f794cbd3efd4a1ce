#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace rollcast {

/// A stretch of text that is valid UTF-8 as a whole, or in which no byte is part of a character.
struct utf8_run {
  std::string_view text;
  bool valid = true;
};

/// Returns the longest run at the start of `text`, which must not be empty. Surrogates and overlong
/// forms are not valid. Runs never end inside a character.
[[nodiscard]] utf8_run first_run(std::string_view text);

/// Returns `text` in Unicode normalization form C, by the tables of Unicode 9 as the reference
/// does: marks that came later stay where they are.
///
/// @param text  Valid UTF-8.
/// Cost:    O(n log n) also for long runs of combining marks.
/// Source:  Unicode Standard Annex 15; tables of utf8proc 2.8, less what came after Unicode 9.
[[nodiscard]] std::string to_nfc(std::string_view text);

/// Tells whether the last (first) character of `text` belongs to a word: a letter, mark, decimal
/// digit, connector or joiner, as `\w` of the reference. False for empty text and broken UTF-8.
[[nodiscard]] bool ends_with_word(std::string_view text);
[[nodiscard]] bool starts_with_word(std::string_view text);

/// Returns how many bytes of white space (Unicode `White_Space`) `text` ends (starts) with.
[[nodiscard]] std::size_t space_at_end(std::string_view text);
[[nodiscard]] std::size_t space_at_start(std::string_view text);

} // namespace rollcast
