#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace rollcast {

/// Undoes the byte-level alphabet of GPT-2, in which `tokenizer.json` writes its tokens: each byte
/// is one printable character (`Ġ` is a space).
///
/// @param token  Valid UTF-8.
/// @returns the bytes, or nothing if a character is not of that alphabet.
/// Source:  openai/gpt-2, src/encoder.py, `bytes_to_unicode`.
[[nodiscard]] std::optional<std::string> bytes_of_byte_level(std::string_view token);

} // namespace rollcast
