// Goal: patterns of the reference cut text in PCRE2 as they do in Oniguruma, and never lose any.
// Method: the pieces of chosen texts, where the two libraries would differ if nothing were done.

#include "engine/tokenizer/regex.hpp"

#include <gtest/gtest.h>

#include <vector>

namespace rollcast {
namespace {

std::vector<std::string> pieces(std::string_view oniguruma, std::string_view text) {
  const auto pattern = split_pattern::compile(to_pcre2(oniguruma).value()).value();
  std::vector<std::string> found;
  pattern.split(text, [&](std::string_view piece) { found.emplace_back(piece); });
  return found;
}

using strings = std::vector<std::string>;

TEST(split_pattern, keeps_matches_and_what_lies_between) {
  EXPECT_EQ(pieces("b+", "abbcb"), (strings{"a", "bb", "c", "b"}));
  EXPECT_EQ(pieces("b+", "xyz"), (strings{"xyz"}));
  EXPECT_EQ(pieces("b+", ""), strings{});
}

TEST(split_pattern, cuts_at_empty_matches_between_characters) {
  EXPECT_EQ(pieces("b?", "aébc"), (strings{"a", "é", "b", "c"}));
}

TEST(split_pattern, reads_classes_as_unicode) {
  EXPECT_EQ(pieces("\\d+", "a٣٤b12"), (strings{"a", "٣٤", "b", "12"}));
  EXPECT_EQ(pieces("\\s+", "a\u3000\u0085b\u180ec"), (strings{"a", "\u3000\u0085", "b\u180ec"}));
  EXPECT_EQ(pieces("\\S+", "a\u180e b"), (strings{"a\u180e", " ", "b"}));
  EXPECT_EQ(pieces("[^\\s\\d]+", "a\u180e1"), (strings{"a\u180e", "1"}));
  EXPECT_EQ(pieces("(?i:'s)", "it'\u017f"), (strings{"it", "'\u017f"}));
}

TEST(split_pattern, takes_a_bracket_first_in_a_class_and_lines_as_ruby_does) {
  EXPECT_EQ(pieces("[]x]+", "a]x"), (strings{"a", "]x"}));
  EXPECT_EQ(pieces("^b", "a\nb"), (strings{"a\n", "b"}));
}

TEST(split_pattern, goes_on_in_the_interpreter_when_compiled_code_runs_out_of_stack) {
  const auto text = std::string(20'000, 'a') + "c";
  EXPECT_EQ(pieces("(?:(a|b)|(ab))+c", "x" + text), (strings{"x", text}));
}

TEST(quoted_for_pcre2, matches_the_literal_only) {
  const std::string literal = "-[a.b]\\d é\n(*X)";
  const auto pattern = split_pattern::compile(quoted_for_pcre2(literal)).value();
  strings found;
  pattern.split("a" + literal + "b", [&](std::string_view piece) { found.emplace_back(piece); });
  EXPECT_EQ(found, (strings{"a", literal, "b"}));
}

} // namespace
} // namespace rollcast
