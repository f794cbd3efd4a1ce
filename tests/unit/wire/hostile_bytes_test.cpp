// Goal: no bytes from a peer crash the codec, grow in memory or pass as something they are not.
// Method: random bytes, every prefix of real messages, real messages with bytes changed, and
// messages made to be costly. Failing seeds are printed.

#include "cluster/wire/codec.hpp"
#include "proto/rollcast.pb.h"
#include "tests/unit/wire/random_messages.hpp"

#include <gtest/gtest.h>
#include <sys/resource.h>

namespace rollcast::wire {
namespace {

std::span<const std::byte> bytes_of(const std::string& text) {
  return std::as_bytes(std::span{text});
}

/// Everything a peer may make us do with its bytes. A refusal is one line with a code.
void take(const std::string& text) {
  const auto check = [](const error& e) {
    EXPECT_NE(e.code, errc::ok);
    EXPECT_FALSE(e.detail.empty());
    EXPECT_EQ(e.detail.find('\n'), std::string::npos) << e.detail;
  };
  if (const auto request = decode_request(bytes_of(text)); !request)
    check(request.error());
  else
    EXPECT_EQ(request_id_of(bytes_of(text)), request->request_id);
  if (const auto event = decode_event(bytes_of(text)); !event)
    check(event.error());
}

/// Returns the most memory that this process ever had, in MiB.
long peak_mib() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return usage.ru_maxrss / 1024;
}

errc code_of(const std::string& text) {
  const auto got = decode_request(bytes_of(text));
  return got ? errc::ok : got.error().code;
}

TEST(hostile_bytes, random_bytes_are_refused) {
  for (std::uint64_t seed = 1; seed <= 20'000; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    prng rng{seed};
    std::string text(rng.below(200), '\0');
    for (auto& c : text)
      c = static_cast<char>(rng.next());
    EXPECT_EQ(code_of(text), errc::frame_malformed);
    take(text);
  }
}

TEST(hostile_bytes, every_prefix_of_a_message_is_survived) {
  for (std::uint64_t seed = 1; seed <= 60; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    prng rng{seed};
    const auto whole =
      rng.chance(50) ? encode(1, random_request(rng)) : encode(1, random_event(rng));
    for (std::size_t size = 0; size < whole.size(); ++size)
      take(whole.substr(0, size));
  }
}

TEST(hostile_bytes, changed_bytes_are_survived) {
  for (std::uint64_t seed = 1; seed <= 5'000; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    prng rng{seed};
    auto text = rng.chance(50) ? encode(1, random_request(rng)) : encode(1, random_event(rng));
    for (auto changes = 1 + rng.below(4); changes > 0; --changes)
      text[rng.below(text.size())] = static_cast<char>(rng.next());
    take(text);
  }
}

TEST(hostile_bytes, a_wrong_envelope_is_malformed) {
  const auto status = encode(5, request{get_status{}});
  EXPECT_EQ(code_of(status), errc::ok);
  EXPECT_EQ(code_of(""), errc::frame_malformed);
  EXPECT_EQ(code_of("GET / HTTP/1.1\r\n\r\n"), errc::frame_malformed);
  EXPECT_EQ(code_of(encode(0, request{get_status{}})), errc::frame_malformed) << "no request id";
  EXPECT_EQ(code_of(encode(5, event{request_done{}})), errc::frame_malformed) << "an answer";
  ::rollcast::v1::Envelope envelope;
  envelope.set_request_id(5);
  envelope.set_version(1);
  EXPECT_EQ(code_of(envelope.SerializeAsString()), errc::frame_malformed) << "no body";
  EXPECT_EQ(code_of(envelope.SerializeAsString() + std::string("\xfa\x3e\x00", 3)),
            errc::frame_malformed)
    << "an unknown body, number 1007";
  envelope.mutable_get_status();
  envelope.set_version(2);
  EXPECT_EQ(code_of(envelope.SerializeAsString()), errc::frame_malformed) << "another version";
  EXPECT_EQ(request_id_of(bytes_of(envelope.SerializeAsString())), 5u)
    << "the refusal must find its asker";
}

TEST(hostile_bytes, of_several_request_ids_the_last_one_counts) {
  const auto status = encode(5, request{get_status{}}) + std::string{"\x10\x06", 2};
  const auto got = decode_request(bytes_of(status));
  ASSERT_TRUE(got) << got.error().detail;
  EXPECT_EQ(got->request_id, 6u);
  EXPECT_EQ(request_id_of(bytes_of(status)), 6u);
}

TEST(hostile_bytes, text_that_is_not_utf8_is_malformed) {
  EXPECT_EQ(code_of(encode(5, request{cancel_batch{"\xff\xfe"}})), errc::frame_malformed);
}

TEST(hostile_bytes, an_oversized_message_is_refused_unread) {
  const std::string text(limits.message_bytes + 1, '\x08');
  EXPECT_EQ(code_of(text), errc::frame_too_large);
  EXPECT_EQ(request_id_of(bytes_of(text)), 0u);
  const auto event = decode_event(bytes_of(text));
  ASSERT_FALSE(event);
  EXPECT_EQ(event.error().code, errc::frame_too_large);
}

/// A request number 5 of 40 MB that says the two-byte `part` 20 million times, in the field `tag`.
std::string flood(std::string_view tag, std::string_view part) {
  std::string parts;
  for (int i = 0; i < 20'000'000; ++i)
    parts += part;
  std::string text{"\x08\x01\x10\x05", 4}; // version 1, request 5
  text += tag;
  for (auto size = parts.size(); size > 0; size >>= 7)
    text += static_cast<char>((size & 0x7f) | (size > 0x7f ? 0x80 : 0));
  return text + parts;
}

TEST(hostile_bytes, a_flood_of_empty_parts_is_refused_before_it_is_parsed) {
#if defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "ThreadSanitizer's shadow counts as memory";
#endif
  // Two bytes a part: parsed, these 40 MB would take more than two gigabytes.
  const std::pair<std::string, const char*> floods[] = {
    {flood("\x52", {"\x12\x00", 2}), "20000000 groups"},     // submit_batch
    {flood("\x8a\x01", {"\x1a\x00", 2}), "20000000 slices"}, // weight_bucket
    {flood("\x7a", {"\x0a\x00", 2}), "20000000 sequences"}}; // score
  for (const auto& [text, says] : floods) {
    const auto before = peak_mib();
    const auto got = decode_request(bytes_of(text));
    EXPECT_LT(peak_mib() - before, 100) << "MiB";
    ASSERT_FALSE(got) << says;
    EXPECT_EQ(got.error().code, errc::frame_too_large);
    EXPECT_NE(got.error().detail.find(says), std::string::npos) << got.error().detail;
    EXPECT_EQ(request_id_of(bytes_of(text)), 5u);
  }
}

TEST(hostile_bytes, a_refusal_can_be_read_by_its_peer) {
  // Cut at 40 bytes this name would end in half a character, which is no text on the wire.
  submit_batch batch;
  batch.batch_key = "k";
  batch.groups = {{.id = "x" + std::string(),
                   .prompt_token_ids = {},
                   .group_size = 1,
                   .seed = {},
                   .sampling = {}}};
  for (int i = 0; i < 30; ++i)
    batch.groups[0].id += "é";
  batch.sampling.max_new_tokens = 1;
  const auto refused = decode_request(bytes_of(encode(5, request{batch})));
  ASSERT_FALSE(refused);
  const auto got = decode_event(
    bytes_of(encode(5, request_failed{errc::bad_prompt, refused.error().detail, {}, {}})));
  ASSERT_TRUE(got) << got.error().detail;
}

} // namespace
} // namespace rollcast::wire
