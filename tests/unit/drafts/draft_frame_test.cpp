// Goal: what one side says the other understands, and nothing else is taken for a frame.
// Method: frames of every kind there and back; each field out of bounds; random cuts and flips.

#include "cluster/drafts/draft_frame.hpp"
#include "engine/base/prng.hpp"

#include <gtest/gtest.h>

namespace rollcast {
namespace {

std::vector<draft_frame> samples() {
  std::vector<draft_frame> all(6);
  all[0].kind = draft_message::follow;
  all[0].group = {0x8123456789abcdefu};
  all[0].ends = {{{1}, 0, 0}, {{0xffff'ffff'ffff'ffffu}, draft_position_max, 7}};
  all[1].kind = draft_message::unfollow;
  all[1].group = {3};
  all[2].kind = draft_message::tokens;
  all[2].incarnation = 99;
  all[2].response = {12};
  all[2].position = 1'000'000;
  all[2].age_us = draft_age_replayed;
  all[2].tokens = {0, 1, 0x7fff'ffff};
  all[3].kind = draft_message::want;
  all[3].response = {13};
  all[3].position = 5;
  all[4].kind = draft_message::unknown;
  all[4].incarnation = 0xffff'ffff'ffff'ffffu;
  all[5].kind = draft_message::follow; // a group of which nothing is known
  return all;
}

result<draft_frame> decode(const std::string& bytes) {
  return decode_draft_frame(std::as_bytes(std::span{bytes}));
}

TEST(draft_frame, means_the_same_on_both_sides) {
  for (const auto& frame : samples()) {
    const auto read = decode(encode(frame));
    ASSERT_TRUE(read) << read.error().detail;
    EXPECT_EQ(*read, frame);
  }
}

TEST(draft_frame, longest_ones_fit_the_limit_of_the_sockets) {
  draft_frame frame{.kind = draft_message::follow};
  frame.ends.resize(draft_frame_ends_max);
  EXPECT_LE(encode(frame).size(), draft_frame_bytes_max);
  EXPECT_TRUE(decode(encode(frame)));
  draft_frame news{.kind = draft_message::tokens};
  news.tokens.resize(draft_frame_tokens_max);
  EXPECT_LE(encode(news).size(), draft_frame_bytes_max);
  EXPECT_TRUE(decode(encode(news)));
}

TEST(draft_frame, with_one_byte_more_or_less_is_refused) {
  for (const auto& frame : samples()) {
    const auto bytes = encode(frame);
    for (std::size_t size = 0; size < bytes.size(); ++size)
      EXPECT_FALSE(decode(bytes.substr(0, size)));
    EXPECT_FALSE(decode(bytes + '\0'));
  }
}

TEST(draft_frame, out_of_bounds_is_refused_and_the_field_named) {
  const auto refused = [](draft_frame frame, std::string_view word) {
    const auto read = decode(encode(frame));
    ASSERT_FALSE(read) << word;
    EXPECT_EQ(read.error().code, errc::frame_malformed);
    EXPECT_NE(read.error().detail.find(word), std::string::npos) << read.error().detail;
  };
  auto frame = samples()[2];
  frame.tokens = {1, -1};
  refused(frame, "token -1");
  frame.tokens.clear();
  refused(frame, "0 tokens");
  frame = samples()[2];
  frame.position = 0xffff'ff00;
  refused(frame, "position 4294967040");
  frame = samples()[3];
  frame.position = draft_position_max;
  refused(frame, "position");
  frame = samples()[0];
  frame.ends[1].known = draft_position_max + 1;
  refused(frame, "1073741825 tokens");
  frame.kind = static_cast<draft_message>(6);
  refused(frame, "kind 6");
  frame.kind = static_cast<draft_message>(0);
  refused(frame, "kind 0");
  auto bytes = encode(samples()[1]);
  bytes[0] = 'X';
  EXPECT_NE(decode(bytes).error().detail.find("magic"), std::string::npos);
}

TEST(draft_frame, of_random_bytes_harms_nobody) {
  prng random{20261121};
  std::size_t taken = 0;
  for (int round = 0; round < 200'000; ++round) {
    auto bytes = encode(samples()[random.below(6)]);
    for (auto flips = random.below(4); flips > 0; --flips)
      bytes[random.below(bytes.size())] = static_cast<char>(random.next());
    if (random.below(4) == 0)
      bytes.resize(random.below(80));
    const auto read = decode(bytes);
    taken += read ? 1 : 0;
    if (read) {
      EXPECT_EQ(encode(*read), bytes) << "one meaning, one spelling";
      EXPECT_LE(read->position, draft_position_max);
    }
  }
  EXPECT_GT(taken, 1'000u);
}

TEST(draft_group, depends_on_number_and_prompt) {
  const std::vector<token_id> one{1, 2, 3};
  const std::vector<token_id> two{1, 2, 4};
  EXPECT_EQ(draft_group_of({1}, one), draft_group_of({1}, one));
  EXPECT_NE(draft_group_of({1}, one), draft_group_of({2}, one));
  EXPECT_NE(draft_group_of({1}, one), draft_group_of({1}, two));
}

} // namespace
} // namespace rollcast
