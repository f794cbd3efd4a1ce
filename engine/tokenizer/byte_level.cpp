#include "engine/tokenizer/byte_level.hpp"

#include <array>
#include <cstdint>

namespace rollcast {
namespace {

/// The alphabet ends here: 188 bytes stand for themselves, the other 68 follow U+0100 in order.
constexpr std::size_t alphabet_end = 0x100 + 68;

constexpr bool stands_for_itself(std::size_t byte) {
  return (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
}

/// Byte by code point; -1 where the code point is not of the alphabet.
constexpr std::array<std::int16_t, alphabet_end> make_byte_of() {
  std::array<std::int16_t, alphabet_end> byte_of{};
  byte_of.fill(-1);
  std::size_t next = 0x100;
  for (std::size_t byte = 0; byte < 256; ++byte)
    byte_of[stands_for_itself(byte) ? byte : next++] = static_cast<std::int16_t>(byte);
  return byte_of;
}

constexpr auto byte_of = make_byte_of();

} // namespace

std::optional<std::string> bytes_of_byte_level(std::string_view token) {
  std::string bytes;
  bytes.reserve(token.size());
  for (std::size_t at = 0; at < token.size(); ++at) {
    std::size_t code_point = static_cast<unsigned char>(token[at]);
    if (code_point >= 0x80) {
      // The alphabet has only one- and two-byte characters.
      if (code_point < 0xc2 || code_point > 0xdf || at + 1 == token.size())
        return std::nullopt;
      code_point = (code_point & 0x1f) << 6 | (static_cast<unsigned char>(token[++at]) & 0x3f);
    }
    if (code_point >= alphabet_end || byte_of[code_point] < 0)
      return std::nullopt;
    bytes.push_back(static_cast<char>(byte_of[code_point]));
  }
  return bytes;
}

} // namespace rollcast
