// Goal: no bytes crash the tokenizer, and what went in comes out again; long texts take time that
// grows with their length, not with its square.
// Method: random bytes, random valid UTF-8 and valid UTF-8 with broken bytes in it, from fixed
// seeds (the failing one is printed), through every fixture; texts of a million characters against
// a limit that a quadratic step would exceed by far.

#include "engine/tokenizer/tokenizer.hpp"
#include "engine/tokenizer/utf8.hpp"
#include "tests/unit/tokenizer/fixtures.hpp"

#include <gtest/gtest.h>

#include <chrono>
#include <cstdint>
#include <random>

namespace rollcast {
namespace {

using generator = std::mt19937_64;

std::uint32_t below(generator& random, std::uint32_t limit) {
  return static_cast<std::uint32_t>(random() % limit);
}

std::string random_bytes(generator& random) {
  std::string bytes(below(random, 200), '\0');
  for (auto& byte : bytes)
    byte = static_cast<char>(below(random, 256));
  return bytes;
}

void append_utf8(std::string& text, std::uint32_t c) {
  const auto tail = [&](std::uint32_t shift) {
    text += static_cast<char>(0x80 | (c >> shift & 0x3f));
  };
  if (c < 0x80) {
    text += static_cast<char>(c);
  } else if (c < 0x800) {
    text += static_cast<char>(0xc0 | c >> 6);
    tail(0);
  } else if (c < 0x10000) {
    text += static_cast<char>(0xe0 | c >> 12);
    tail(6);
    tail(0);
  } else {
    text += static_cast<char>(0xf0 | c >> 18);
    tail(12);
    tail(6);
    tail(0);
  }
}

/// Half ASCII, the rest from all planes, with many combining marks and Hangul parts.
std::string random_utf8(generator& random) {
  std::string text;
  for (auto left = below(random, 60); left > 0; --left) {
    constexpr std::uint32_t limits[] = {0x80, 0x80, 0x80, 0x800, 0x10000, 0x110000};
    auto c = below(random, limits[below(random, 6)]);
    const auto kind = below(random, 10);
    if (kind == 0)
      c = 0x300 + below(random, 0x70);
    else if (kind == 1)
      c = 0x1100 + below(random, 0x100);
    if (c < 0xd800 || c > 0xdfff)
      append_utf8(text, c);
  }
  return text;
}

std::string random_mixture(generator& random) {
  constexpr std::string_view bits[] = {"<|im_end|>", "<|endoftext|>", "<mask>",       "<r>", "word",
                                       "\xe2\x82",   "\xff",          "\xed\xa0\x80", " ",   "\n"};
  std::string text;
  for (auto left = below(random, 8); left > 0; --left) {
    text += random_utf8(random).substr(0, 9);
    text += bits[below(random, 10)];
  }
  return text;
}

TEST(random_text, comes_back_byte_for_byte_whatever_it_is) {
  const auto llama = load_fixture("llama");
  const auto collatz = load_fixture("collatz");
  for (std::uint64_t seed = 0; seed < 3000; ++seed) {
    generator random{seed};
    for (const auto& text : {random_bytes(random), random_utf8(random), random_mixture(random)})
      for (const auto* subject : {&llama, &collatz}) {
        const auto ids = subject->encode(text, encode_special::leave_out);
        ASSERT_EQ(subject->decode(ids).value(), text) << "seed " << seed;
      }
  }
}

TEST(random_text, comes_back_normalized_where_the_file_says_nfc) {
  const auto qwen = load_fixture("qwen");
  for (std::uint64_t seed = 0; seed < 3000; ++seed) {
    generator random{seed};
    const auto text = random_utf8(random);
    const auto ids = qwen.encode(text);
    ASSERT_EQ(qwen.decode(ids).value(), to_nfc(text)) << "seed " << seed;
    ASSERT_EQ(qwen.encode(to_nfc(text)), ids) << "seed " << seed;
  }
}

TEST(random_text, only_gives_ids_of_the_vocabulary) {
  for (const auto* name : {"qwen", "llama", "gpt2", "strips", "collatz"}) {
    const auto subject = load_fixture(name);
    for (std::uint64_t seed = 0; seed < 1000; ++seed) {
      generator random{seed};
      for (const auto& text : {random_bytes(random), random_mixture(random)})
        ASSERT_TRUE(subject.decode(subject.encode(text))) << name << ", seed " << seed;
    }
  }
}

TEST(broken_utf8, is_kept_as_byte_tokens_between_the_texts_around_it) {
  const auto subject = load_fixture("llama");
  const auto ids = subject.encode("the fox\xff\xe2\x82 jumps", encode_special::leave_out);
  auto expected = subject.encode("the fox", encode_special::leave_out);
  for (const char* byte : {"\xff", "\xe2", "\x82"}) {
    const auto one = subject.encode(byte, encode_special::leave_out);
    ASSERT_EQ(one.size(), 1u);
    expected.push_back(one[0]);
  }
  const auto after = subject.encode(" jumps", encode_special::leave_out);
  expected.insert(expected.end(), after.begin(), after.end());
  EXPECT_EQ(ids, expected);
}

std::string repeated(std::string_view unit, std::size_t bytes) {
  std::string text;
  while (text.size() < bytes)
    text += unit;
  return text;
}

TEST(long_text, takes_time_in_proportion) {
  // Each takes well under a second without sanitizers; a quadratic step takes minutes.
  constexpr auto limit = std::chrono::seconds{10};
  constexpr std::string_view units[] = {"a",    "the",   " ",      "\n", "\xcc\x81\xcc\x96",
                                        "\xff", "<|im_", "<mask>", "7",  "the quick ",
                                        " \n",  "中"};
  for (const auto* name : {"qwen", "llama", "gpt2", "strips"}) {
    const auto subject = load_fixture(name);
    for (const auto unit : units) {
      const auto text = repeated(unit, 1'000'000);
      const auto start = std::chrono::steady_clock::now();
      const auto ids = subject.encode(text);
      EXPECT_LT(std::chrono::steady_clock::now() - start, limit) << name << " " << unit;
      EXPECT_FALSE(ids.empty());
    }
  }
}

} // namespace
} // namespace rollcast
