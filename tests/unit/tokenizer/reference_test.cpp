// Goal: the ids of the reference tokenizer library, for every family and every awkward string.
// Method: small tokenizers with the real pre-tokenizers, normalizers, post-processors and kinds of
// added tokens, and more than 400 strings, each with the ids the reference gave; both are
// committed, and tests/fixtures/tokenizer/make_fixtures.py made them. Decoding is held by going
// back to the text where nothing rewrites it.

#include "engine/tokenizer/tokenizer.hpp"
#include "engine/tokenizer/utf8.hpp"
#include "tests/unit/tokenizer/fixtures.hpp"

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <fstream>

namespace rollcast {
namespace {

nlohmann::json reference_strings() {
  std::ifstream in{std::filesystem::path{ROLLCAST_SOURCE_DIR}
                   / "tests/fixtures/tokenizer/strings.json"};
  return nlohmann::json::parse(in);
}

class reference : public testing::TestWithParam<std::string> {};

TEST_P(reference, gives_the_same_ids) {
  const auto subject = load_fixture(GetParam());
  const auto with_special = GetParam() + "+special";
  std::size_t compared = 0;
  for (const auto& entry : reference_strings()) {
    const auto& text = entry["text"].get_ref<const std::string&>();
    const auto& ids = entry["ids"];
    if (!ids.contains(GetParam()))
      continue;
    ++compared;
    const auto plain = ids[GetParam()].get<std::vector<token_id>>();
    EXPECT_EQ(subject.encode(text, encode_special::leave_out), plain) << entry["text"];
    const auto added = ids.value(with_special, plain);
    EXPECT_EQ(subject.encode(text, encode_special::add), added) << entry["text"];
  }
  EXPECT_GE(compared, 200u);
}

INSTANTIATE_TEST_SUITE_P(tokenizer, reference,
                         testing::Values("qwen", "llama", "gpt2", "strips", "collatz"),
                         [](const auto& about) { return about.param; });

TEST(decode, gives_the_text_back_where_no_normalizer_changes_it) {
  for (const auto* name : {"qwen", "llama", "collatz"}) {
    const auto subject = load_fixture(name);
    for (const auto& entry : reference_strings()) {
      const auto& text = entry["text"].get_ref<const std::string&>();
      const auto ids = subject.encode(text, encode_special::leave_out);
      const auto& expected = std::string_view{name} == "qwen" ? to_nfc(text) : text;
      EXPECT_EQ(subject.decode(ids).value(), expected) << name << " " << entry["text"];
    }
  }
}

TEST(decode, skips_special_tokens_only_when_asked) {
  const auto subject = load_fixture("qwen");
  const auto ids = subject.encode("<|im_start|>user <think>x<|im_end|>");
  EXPECT_EQ(subject.decode(ids).value(), "<|im_start|>user <think>x<|im_end|>");
  EXPECT_EQ(subject.decode(ids, decode_special::skip).value(), "user <think>x");
}

TEST(decode, returns_parts_of_characters_as_they_are) {
  const auto subject = load_fixture("collatz");
  const auto ids = subject.encode("😀");
  ASSERT_EQ(ids.size(), 4u);
  EXPECT_EQ(subject.decode(std::span{ids}.first(2)).value(), "\xf0\x9f");
}

TEST(decode, refuses_ids_that_are_not_in_the_file) {
  const auto subject = load_fixture("collatz");
  for (const token_id id : {-1, 258, 151935}) {
    const auto decoded = subject.decode(std::vector<token_id>{65, id});
    ASSERT_FALSE(decoded);
    EXPECT_EQ(decoded.error().code, errc::bad_prompt);
    EXPECT_EQ(decoded.error().detail, "token id " + std::to_string(id)
                                        + " at position 1 of 2 is not in the tokenizer, which has "
                                          "ids below 258");
  }
}

TEST(tokenizer, knows_its_added_tokens_and_its_size) {
  const auto subject = load_fixture("collatz");
  EXPECT_EQ(subject.vocabulary(), 258u);
  EXPECT_EQ(subject.id_of("<|endoftext|>"), 256);
  EXPECT_EQ(subject.id_of("<|pad|>"), 257);
  EXPECT_EQ(subject.id_of("a"), std::nullopt);
}

} // namespace
} // namespace rollcast
