// Goal: the detail of every failure is one line of bounded length, whatever is repeated in it.
// Method: texts with control characters, long ones, and ones whose end is within a character.

#include "engine/base/error.hpp"

#include <gtest/gtest.h>

namespace rollcast {
namespace {

std::string detail_of(std::string text) {
  const result<void> failed = fail(errc::bad_prompt, std::move(text));
  return failed.error().detail;
}

TEST(error, detail_has_no_control_character) {
  EXPECT_EQ(detail_of("key \"a\nERROR b\r\t\x1b[2J\x7f\""), "key \"a?ERROR b???[2J?\"");
  EXPECT_EQ(detail_of(std::string("a\0b", 3)), "a?b");
  EXPECT_EQ(detail_of("caf\u00e9 \u4f60"), "caf\u00e9 \u4f60") << "other text stays as it is";
}

TEST(error, detail_is_bounded_and_cut_between_characters) {
  const std::string whole(4'096, 'x');
  EXPECT_EQ(detail_of(whole), whole);
  EXPECT_EQ(detail_of(whole + "x"), whole + "...");
  const std::string before(4'095, 'x');
  EXPECT_EQ(detail_of(before + "\u4f60\u597d"), before + "...");
}

} // namespace
} // namespace rollcast
