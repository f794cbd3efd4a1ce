// Goal: parse_safetensors accepts exactly what the format allows, and never reads outside of it.
// Method: a small good file; a table of damaged headers with the words that each refusal must hold;
// the good file cut at every byte; and seeded random damage, on a heap copy of exactly the file's
// size so that a sanitizer sees the first byte read too far.

#include "engine/base/prng.hpp"
#include "engine/model/checkpoint.hpp"

#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

namespace rollcast {
namespace {

/// A file with this header and as many data bytes.
std::string file(const std::string& header, std::size_t data_bytes) {
  const std::uint64_t length = header.size();
  std::string out(8, '\0');
  std::memcpy(out.data(), &length, 8);
  return out + header + std::string(data_bytes, '\x11');
}

const std::string good_header =
  R"({"__metadata__":{"format":"pt"},"b":{"dtype":"BF16","shape":[2,3],"data_offsets":[4,16]},)"
  R"("a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},)"
  R"("none":{"dtype":"F16","shape":[0,7],"data_offsets":[16,16]},)"
  R"("q":{"dtype":"F8_E4M3","shape":[5],"data_offsets":[16,21]}}   )";

result<std::map<std::string, tensor_entry, std::less<>>> parse(const std::string& text) {
  const auto exact = std::make_unique<std::byte[]>(text.size());
  std::memcpy(exact.get(), text.data(), text.size());
  return parse_safetensors({exact.get(), text.size()}, "x.safetensors");
}

void expect_refused(const std::string& text, const std::vector<std::string>& words) {
  const auto parsed = parse(text);
  ASSERT_FALSE(parsed.has_value()) << "accepted: " << text.substr(8);
  const auto& detail = parsed.error().detail;
  EXPECT_EQ(errc::bad_checkpoint, parsed.error().code);
  EXPECT_EQ(0u, detail.find("x.safetensors: ")) << detail;
  EXPECT_EQ(std::string::npos, detail.find('\n')) << detail;
  for (const auto& word : words)
    EXPECT_NE(std::string::npos, detail.find(word)) << "no '" << word << "' in: " << detail;
}

/// A file with one tensor `t` of these fields and `data_bytes` bytes.
std::string one(const std::string& fields, std::size_t data_bytes) {
  return file(R"({"t":{)" + fields + "}}", data_bytes);
}

TEST(parse_safetensors, places_every_tensor) {
  const auto parsed = parse(file(good_header, 21));
  ASSERT_TRUE(parsed.has_value()) << parsed.error().detail;
  ASSERT_EQ(4u, parsed->size());
  const auto& b = parsed->at("b");
  EXPECT_EQ("BF16", b.dtype);
  EXPECT_EQ((std::vector<std::size_t>{2, 3}), b.shape);
  EXPECT_EQ(8 + good_header.size() + 4, b.begin);
  EXPECT_EQ(8 + good_header.size() + 16, b.end);
}

TEST(parse_safetensors, refuses_a_file_cut_anywhere) {
  const auto whole = file(good_header, 21);
  for (std::size_t length = 0; length < whole.size(); ++length)
    EXPECT_FALSE(parse(whole.substr(0, length)).has_value()) << length;
  expect_refused(whole.substr(0, 7), {"7 bytes"});
  expect_refused(whole.substr(0, 8 + good_header.size() - 1), {"truncated"});
  expect_refused(whole.substr(0, 8), {"truncated", std::to_string(good_header.size())});
  expect_refused(whole.substr(0, whole.size() - 1), {"20 data bytes", "truncated"});
}

TEST(parse_safetensors, refuses_an_absurd_header_length) {
  for (const std::uint64_t length : {std::uint64_t{100'000'001}, std::uint64_t{1} << 62,
                                     ~std::uint64_t{0}, ~std::uint64_t{0} - 7}) {
    auto text = file("{}", 0);
    std::memcpy(text.data(), &length, 8);
    expect_refused(text, {std::to_string(length), "100000000"});
  }
}

TEST(parse_safetensors, refuses_a_header_that_is_not_an_object) {
  expect_refused(file("", 0), {"JSON"});
  expect_refused(file("[]", 0), {"array"});
  expect_refused(file("{\"a\": NaN}", 0), {"JSON"});
  expect_refused(file("{\"\xff\": 1}", 0), {"JSON"});
  expect_refused(file(std::string(1000, '\0'), 0), {"JSON"});
}

TEST(parse_safetensors, refuses_a_name_that_appears_twice) {
  expect_refused(file(R"({"t":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
                      R"("t":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})",
                      2),
                 {"\"t\"", "twice"});
}

TEST(parse_safetensors, refuses_fields_that_are_missing_or_of_a_wrong_type) {
  expect_refused(file(R"({"t": 3})", 0), {"tensor t", "not an object"});
  expect_refused(one(R"("shape":[1],"data_offsets":[0,1])", 1), {"tensor t", "dtype"});
  expect_refused(one(R"("dtype":8,"shape":[1],"data_offsets":[0,1])", 1), {"dtype"});
  expect_refused(one(R"("dtype":"U8","data_offsets":[0,1])", 1), {"shape"});
  expect_refused(one(R"("dtype":"U8","shape":1,"data_offsets":[0,1])", 1), {"shape"});
  expect_refused(one(R"("dtype":"U8","shape":[-1],"data_offsets":[0,1])", 1), {"shape", "-1"});
  expect_refused(one(R"("dtype":"U8","shape":[1.0],"data_offsets":[0,1])", 1), {"shape", "1.0"});
  expect_refused(one(R"("dtype":"U8","shape":[1,1,1,1,1,1,1,1,1],"data_offsets":[0,1])", 1),
                 {"at most 8"});
  expect_refused(one(R"("dtype":"U8","shape":[1])", 1), {"data_offsets"});
  expect_refused(one(R"("dtype":"U8","shape":[1],"data_offsets":[0])", 1), {"data_offsets"});
  expect_refused(one(R"("dtype":"U8","shape":[1],"data_offsets":[-1,0])", 1), {"data_offsets"});
  expect_refused(one(R"("dtype":"U8","shape":[1],"data_offsets":["0","1"])", 1), {"data_offsets"});
}

TEST(parse_safetensors, refuses_bytes_that_are_not_shape_times_dtype) {
  expect_refused(one(R"("dtype":"BF16","shape":[2,3],"data_offsets":[0,11])", 11),
                 {"[2, 3] of BF16 needs 12 bytes", "give 11"});
  expect_refused(one(R"("dtype":"BF16","shape":[2,3],"data_offsets":[0,13])", 13),
                 {"[2, 3] of BF16 needs 12 bytes", "give 13"});
  expect_refused(one(R"("dtype":"F4","shape":[3],"data_offsets":[0,1])", 1), {"impossible"});
  // 2^32 * 2^32 elements are 0 modulo 2^64; so are 2^61 elements of 64 bits.
  expect_refused(one(R"("dtype":"U8","shape":[4294967296,4294967296],"data_offsets":[0,0])", 0),
                 {"impossible"});
  expect_refused(one(R"("dtype":"F64","shape":[2305843009213693952],"data_offsets":[0,0])", 0),
                 {"impossible"});
}

TEST(parse_safetensors, refuses_offsets_outside_of_the_file_and_overlaps_and_gaps) {
  expect_refused(one(R"("dtype":"U8","shape":[2],"data_offsets":[0,2])", 1), {"[0, 2)", "1 data"});
  expect_refused(one(R"("dtype":"U8","shape":[1],"data_offsets":[1,0])", 1),
                 {"[1, 0) are not within"});
  expect_refused(
    one(R"("dtype":"U8","shape":[1],"data_offsets":[18446744073709551615,18446744073709551615])",
        1),
    {"18446744073709551615"});
  expect_refused(one(R"("dtype":"U8","shape":[1],"data_offsets":[1,2])", 2), {"tensor t", "gaps"});
  expect_refused(one(R"("dtype":"U8","shape":[1],"data_offsets":[0,1])", 2), {"2 data bytes"});
  expect_refused(file(R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},)"
                      R"("b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}})",
                      3),
                 {"tensor b", "data byte 1", "ends at 2", "overlaps"});
}

TEST(parse_safetensors, makes_one_line_of_hostile_names) {
  expect_refused(file("{\"evil\\n\\u001b[2J" + std::string(500, 'x') + "\": 1}", 0),
                 {"evil??[2J", "..."});
}

TEST(parse_safetensors, accepts_types_it_does_not_know_by_their_place) {
  const auto parsed = parse(one(R"("dtype":"F2_NEW","shape":[9],"data_offsets":[0,3])", 3));
  ASSERT_TRUE(parsed.has_value()) << parsed.error().detail;
  EXPECT_EQ("F2_NEW", parsed->at("t").dtype);
}

TEST(parse_safetensors, survives_random_damage) {
  const auto whole = file(good_header, 21);
  std::size_t accepted = 0;
  for (std::uint64_t seed = 1; seed <= 20'000; ++seed) {
    prng random(seed);
    auto text = whole;
    for (std::uint64_t edits = 1 + random.below(4); edits > 0 && !text.empty(); --edits) {
      const auto at = static_cast<std::size_t>(random.below(text.size()));
      switch (random.below(4)) {
        case 0: text[at] = static_cast<char>(random.next()); break;
        case 1: text.erase(at, 1 + random.below(8)); break;
        case 2: text.insert(at, 1, static_cast<char>('0' + random.below(10))); break;
        default: text.insert(at, text.substr(random.below(text.size()), random.below(40))); break;
      }
    }
    const auto parsed = parse(text);
    accepted += parsed.has_value() ? 1 : 0;
    if (!parsed) {
      EXPECT_EQ(errc::bad_checkpoint, parsed.error().code) << "seed " << seed;
      EXPECT_EQ(std::string::npos, parsed.error().detail.find('\n')) << "seed " << seed;
      continue;
    }
    for (const auto& [name, entry] : *parsed) {
      EXPECT_LE(entry.begin, entry.end) << "seed " << seed;
      EXPECT_LE(entry.end, text.size()) << "seed " << seed;
    }
  }
  EXPECT_GT(accepted, 0u) << "damage inside of the data or of a name leaves a good file";
}

} // namespace
} // namespace rollcast
