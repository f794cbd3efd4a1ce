#include "engine/tokenizer/utf8.hpp"

#include "engine/base/check.hpp"

#include <utf8proc.h>

#include <algorithm>
#include <iterator>
#include <span>
#include <vector>

namespace rollcast {
namespace {

struct code_point_range {
  utf8proc_int32_t first;
  utf8proc_int32_t last;
};

/// Characters that normalization must leave alone and never moves or composes anything across, in
/// order. All but one got their combining class or decomposition after Unicode 9, whose tables the
/// reference has. The one is U+11A7, just below the Hangul final consonants, which utf8proc 2.8
/// loses after a syllable.
constexpr code_point_range alone[] = {
  {0x7fd, 0x7fd},     {0x898, 0x89f},     {0x8ca, 0x8d3},     {0x9fe, 0x9fe},
  {0xc3c, 0xc3c},     {0xd3b, 0xd3c},     {0xeba, 0xeba},     {0x11a7, 0x11a7},
  {0x1715, 0x1715},   {0x1abf, 0x1ace},   {0x1df6, 0x1dfa},   {0xa82c, 0xa82c},
  {0x10d24, 0x10d27}, {0x10eab, 0x10eac}, {0x10efd, 0x10eff}, {0x10f46, 0x10f50},
  {0x10f82, 0x10f85}, {0x11070, 0x11070}, {0x1133b, 0x1133b}, {0x1145e, 0x1145e},
  {0x11839, 0x1183a}, {0x11930, 0x11930}, {0x11938, 0x11938}, {0x1193d, 0x1193e},
  {0x11943, 0x11943}, {0x119e0, 0x119e0}, {0x11a34, 0x11a34}, {0x11a47, 0x11a47},
  {0x11a99, 0x11a99}, {0x11d42, 0x11d42}, {0x11d44, 0x11d45}, {0x11d97, 0x11d97},
  {0x11f41, 0x11f42}, {0x16ff0, 0x16ff1}, {0x1e08f, 0x1e08f}, {0x1e130, 0x1e136},
  {0x1e2ae, 0x1e2ae}, {0x1e2ec, 0x1e2ef}, {0x1e4ec, 0x1e4ef}};

bool stands_alone(utf8proc_int32_t c) {
  const auto* range = std::lower_bound(
    std::begin(alone), std::end(alone), c,
    [](const code_point_range& r, utf8proc_int32_t wanted) { return r.last < wanted; });
  return range != std::end(alone) && range->first <= c;
}

struct character {
  utf8proc_int32_t code_point = -1; // -1: no character here
  std::size_t length = 0;
};

character first_character(std::string_view text) {
  if (text.empty())
    return {};
  const auto lead = static_cast<unsigned char>(text[0]);
  if (lead < 0x80)
    return {lead, 1};
  // A character has at most four bytes; the cut keeps the length in utf8proc's signed range.
  const auto head = text.substr(0, 4);
  character found;
  const auto length =
    utf8proc_iterate(reinterpret_cast<const utf8proc_uint8_t*>(head.data()),
                     static_cast<utf8proc_ssize_t>(head.size()), &found.code_point);
  if (length <= 0)
    return {};
  found.length = static_cast<std::size_t>(length);
  return found;
}

character last_character(std::string_view text) {
  for (std::size_t length = 1; length <= std::min<std::size_t>(4, text.size()); ++length) {
    const auto found = first_character(text.substr(text.size() - length));
    if (found.length == length)
      return found;
  }
  return {};
}

bool in_word(utf8proc_int32_t c) {
  if (c < 0)
    return false;
  switch (utf8proc_category(c)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_PC: return true;
    default: break;
  }
  // The joiners, and the circled and squared letters, which are symbols but alphabetic.
  return c == 0x200c || c == 0x200d || (c >= 0x24b6 && c <= 0x24e9)
         || (c >= 0x1f130 && c <= 0x1f149) || (c >= 0x1f150 && c <= 0x1f169)
         || (c >= 0x1f170 && c <= 0x1f189);
}

bool is_space(utf8proc_int32_t c) {
  return (c >= 0x9 && c <= 0xd) || c == 0x20 || c == 0x85 || c == 0xa0 || c == 0x1680
         || (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f || c == 0x205f
         || c == 0x3000;
}

/// Everything below U+0300 is in form C already: nothing there combines or decomposes in it.
bool needs_nfc(std::string_view text) {
  return std::any_of(text.begin(), text.end(),
                     [](char c) { return static_cast<unsigned char>(c) >= 0xcc; });
}

struct mark {
  utf8proc_int32_t code_point;
  utf8proc_propval_t combining_class;
};

/// Full canonical decomposition with marks in canonical order. utf8proc_decompose would do, but
/// sorts marks by swapping neighbours, which is quadratic in a long run of them.
std::vector<utf8proc_int32_t> to_nfd(std::string_view text) {
  std::vector<utf8proc_int32_t> decomposed;
  decomposed.reserve(text.size() + 1);
  std::vector<mark> marks;
  const auto flush = [&] {
    std::stable_sort(marks.begin(), marks.end(), [](const mark& a, const mark& b) {
      return a.combining_class < b.combining_class;
    });
    for (const auto& m : marks)
      decomposed.push_back(m.code_point);
    marks.clear();
  };
  while (!text.empty()) {
    const auto c = first_character(text);
    ROLLCAST_CHECK(c.length > 0);
    text.remove_prefix(c.length);
    if (stands_alone(c.code_point)) {
      flush();
      decomposed.push_back(c.code_point);
      continue;
    }
    utf8proc_int32_t parts[8]; // Unicode's longest canonical decomposition has four code points.
    int boundary = 0;
    const auto count =
      utf8proc_decompose_char(c.code_point, parts, 8, UTF8PROC_DECOMPOSE, &boundary);
    ROLLCAST_CHECK(count > 0 && count <= 8);
    for (utf8proc_ssize_t i = 0; i < count; ++i) {
      const auto combining = utf8proc_get_property(parts[i])->combining_class;
      if (combining == 0) {
        flush();
        decomposed.push_back(parts[i]);
      } else {
        marks.push_back({parts[i], combining});
      }
    }
  }
  flush();
  return decomposed;
}

void append_character(utf8proc_int32_t code_point, std::string& text) {
  utf8proc_uint8_t bytes[4];
  const auto length = utf8proc_encode_char(code_point, bytes);
  text.append(reinterpret_cast<const char*>(bytes), static_cast<std::size_t>(length));
}

/// Composes in place and appends the result.
void append_composed(std::span<utf8proc_int32_t> decomposed, std::string& text) {
  const auto count =
    utf8proc_normalize_utf32(decomposed.data(), static_cast<utf8proc_ssize_t>(decomposed.size()),
                             static_cast<utf8proc_option_t>(UTF8PROC_COMPOSE | UTF8PROC_STABLE));
  ROLLCAST_CHECK(count >= 0);
  for (const auto code_point : decomposed.first(static_cast<std::size_t>(count)))
    append_character(code_point, text);
}

} // namespace

utf8_run first_run(std::string_view text) {
  const bool valid = first_character(text).length > 0;
  std::size_t at = 0;
  while (at < text.size()) {
    const auto length = first_character(text.substr(at)).length;
    if ((length > 0) != valid)
      break;
    at += std::max<std::size_t>(1, length);
  }
  return {text.substr(0, at), valid};
}

std::string to_nfc(std::string_view text) {
  if (!needs_nfc(text))
    return std::string{text};
  auto code_points = to_nfd(text);
  std::string composed;
  composed.reserve(text.size());
  for (auto from = code_points.begin(); from != code_points.end();) {
    const auto to = std::find_if(from, code_points.end(), stands_alone);
    append_composed(std::span{from, to}, composed);
    if (to == code_points.end())
      break;
    append_character(*to, composed);
    from = to + 1;
  }
  return composed;
}

bool ends_with_word(std::string_view text) {
  return in_word(last_character(text).code_point);
}

bool starts_with_word(std::string_view text) {
  return in_word(first_character(text).code_point);
}

std::size_t space_at_end(std::string_view text) {
  const auto whole = text.size();
  for (auto c = last_character(text); is_space(c.code_point); c = last_character(text))
    text.remove_suffix(c.length);
  return whole - text.size();
}

std::size_t space_at_start(std::string_view text) {
  const auto whole = text.size();
  for (auto c = first_character(text); is_space(c.code_point); c = first_character(text))
    text.remove_prefix(c.length);
  return whole - text.size();
}

} // namespace rollcast
