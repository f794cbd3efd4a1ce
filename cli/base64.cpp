#include "cli/base64.hpp"

#include <array>
#include <cstddef>
#include <cstdint>

namespace rollcast::cli {

namespace {

constexpr std::string_view digits =
  "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// The value of a digit, 64 for what is none.
constexpr auto values = [] {
  std::array<std::uint8_t, 256> out{};
  out.fill(64);
  for (std::size_t i = 0; i < digits.size(); ++i)
    out[static_cast<unsigned char>(digits[i])] = static_cast<std::uint8_t>(i);
  return out;
}();

} // namespace

std::string to_base64(std::string_view bytes) {
  std::string out;
  out.reserve((bytes.size() + 2) / 3 * 4);
  for (std::size_t at = 0; at < bytes.size(); at += 3) {
    std::uint32_t word = 0;
    for (std::size_t i = 0; i < 3; ++i)
      word = word << 8 | (at + i < bytes.size() ? static_cast<unsigned char>(bytes[at + i]) : 0u);
    for (std::size_t i = 0; i < 4; ++i)
      out += at + i > bytes.size() ? '=' : digits[word >> (18 - 6 * i) & 63];
  }
  return out;
}

std::optional<std::string> from_base64(std::string_view text) {
  if (text.size() % 4 != 0)
    return std::nullopt;
  const std::size_t padding = text.ends_with("==") ? 2 : text.ends_with('=') ? 1 : 0;
  const auto digits_left = text.size() - padding;
  std::string out;
  out.reserve(text.size() / 4 * 3);
  for (std::size_t at = 0; at < digits_left; at += 4) {
    std::uint32_t word = 0;
    for (std::size_t i = 0; i < 4; ++i) {
      const auto value =
        at + i < digits_left ? values[static_cast<unsigned char>(text[at + i])] : std::uint8_t{0};
      if (value == 64)
        return std::nullopt;
      word = word << 6 | value;
    }
    const auto bytes = at + 4 <= digits_left ? 3 : 3 - padding;
    if (word & ((1u << (8 * (3 - bytes))) - 1)) // bits that no byte has
      return std::nullopt;
    for (std::size_t i = 0; i < bytes; ++i)
      out += static_cast<char>(word >> (16 - 8 * i) & 255);
  }
  return out;
}

} // namespace rollcast::cli
