// Goal: the draft server tells each follower of a group what the others write, once and in order;
// what it lacks it asks for; it stays within its memory and forgets whoever is gone.
// Method: frames and times written by hand; no sockets.

#include "cluster/drafts/draft_board.hpp"

#include <gtest/gtest.h>

#include <numeric>

namespace rollcast {
namespace {

using namespace std::chrono_literals;
using tokens = std::vector<token_id>;

constexpr draft_group group{7};
const draft_board::time start = draft_board::time{} + 1h;

draft_frame follow(std::vector<draft_extent> ends = {}, draft_group name = group) {
  draft_frame frame{.kind = draft_message::follow, .group = name};
  frame.ends = std::move(ends);
  return frame;
}

draft_frame wrote(std::uint64_t response, std::uint32_t position, tokens what,
                  draft_group name = group) {
  draft_frame frame{.kind = draft_message::tokens, .group = name, .response = {response}};
  frame.position = position;
  frame.age_us = 250;
  frame.tokens = std::move(what);
  return frame;
}

tokens counted(std::size_t size, token_id from = 100) {
  tokens all(size);
  std::iota(all.begin(), all.end(), from);
  return all;
}

/// A board, and what it said since the last question.
struct board {
  explicit board(draft_board_limits limits = {}) : it(limits, 42) {}

  std::vector<draft_board::letter> take(const std::string& peer, const draft_frame& frame,
                                        std::chrono::milliseconds at = 0ms) {
    it.take(peer, frame, start + at);
    return std::exchange(it.outbox, {});
  }
  draft_board it;
};

TEST(draft_board, tells_other_followers_what_one_writes) {
  board b;
  EXPECT_TRUE(b.take("a", follow()).empty());
  EXPECT_TRUE(b.take("b", follow()).empty());
  EXPECT_TRUE(b.take("c", follow({}, {8})).empty());
  const auto said = b.take("a", wrote(1, 0, {5, 6}));
  ASSERT_EQ(said.size(), 1u);
  EXPECT_EQ(said[0].to, (std::vector<std::string>{"b"}));
  EXPECT_EQ(said[0].frame.kind, draft_message::tokens);
  EXPECT_EQ(said[0].frame.incarnation, 42u);
  EXPECT_EQ(said[0].frame.position, 0u);
  EXPECT_EQ(said[0].frame.age_us, 250u);
  EXPECT_EQ(said[0].frame.tokens, (tokens{5, 6}));
  EXPECT_EQ(b.it.figures().relayed_tokens, 2u);
  EXPECT_EQ(b.it.figures().followers, 3u);
}

TEST(draft_board, passes_on_only_what_is_new) {
  board b;
  b.take("a", follow());
  b.take("b", follow());
  b.take("a", wrote(1, 0, {5, 6, 7}));
  EXPECT_TRUE(b.take("a", wrote(1, 1, {6, 7})).empty());
  const auto said = b.take("b", wrote(1, 2, {7, 8})); // it runs there now
  ASSERT_EQ(said.size(), 1u);
  EXPECT_EQ(said[0].to, (std::vector<std::string>{"a"}));
  EXPECT_EQ(said[0].frame.position, 3u);
  EXPECT_EQ(said[0].frame.tokens, (tokens{8}));
}

TEST(draft_board, gives_a_late_joiner_all_that_it_does_not_know) {
  board b;
  b.take("a", follow());
  const auto text = counted(10'000);
  for (std::uint32_t at = 0; at < text.size(); at += 1'000)
    b.take("a", wrote(1, at, {text.begin() + at, text.begin() + at + 1'000}));
  b.take("a", wrote(2, 0, {1, 2, 3}));
  b.take("a", wrote(3, 0, {4, 5, 6}));
  tokens heard;
  for (const auto& letter : b.take("late", follow({{{2}, 2, 0}, {{3}, 3, 0}}))) {
    EXPECT_EQ(letter.to, (std::vector<std::string>{"late"}));
    EXPECT_EQ(letter.frame.age_us, draft_age_replayed);
    EXPECT_LE(letter.frame.tokens.size(), draft_frame_tokens_max);
    if (letter.frame.response == response_id{2}) {
      EXPECT_EQ(letter.frame.position, 2u);
      EXPECT_EQ(letter.frame.tokens, (tokens{3}));
    } else {
      EXPECT_EQ(letter.frame.response, response_id{1}) << "3 is known";
      EXPECT_EQ(letter.frame.position, heard.size());
      heard.insert(heard.end(), letter.frame.tokens.begin(), letter.frame.tokens.end());
    }
  }
  EXPECT_EQ(heard, text);
}

TEST(draft_board, asks_for_what_was_lost_and_counts_the_repair) {
  board b;
  b.take("a", follow());
  b.take("b", follow());
  b.take("a", wrote(1, 0, {5, 6}));
  auto said = b.take("a", wrote(1, 4, {9}));
  ASSERT_EQ(said.size(), 1u);
  EXPECT_EQ(said[0].to, (std::vector<std::string>{"a"}));
  EXPECT_EQ(said[0].frame.kind, draft_message::want);
  EXPECT_EQ(said[0].frame.position, 2u);
  EXPECT_TRUE(b.take("a", wrote(1, 5, {10}), 10ms).empty()) << "asked for a moment ago";
  EXPECT_EQ(b.take("a", wrote(1, 5, {10}), 100ms).size(), 1u) << "the answer was lost too";
  EXPECT_EQ(b.it.figures().gaps_repaired, 0u);
  said = b.take("a", wrote(1, 2, {7, 8, 9, 10}), 110ms);
  ASSERT_EQ(said.size(), 1u);
  EXPECT_EQ(said[0].frame.tokens, (tokens{7, 8, 9, 10}));
  EXPECT_EQ(b.it.figures().gaps_repaired, 1u);
}

TEST(draft_board, asks_for_what_a_follower_says_it_has_written) {
  board b;
  b.take("a", follow());
  b.take("a", wrote(1, 0, {5, 6}));
  const auto said = b.take("a", follow({{{1}, 4, 4}, {{2}, 9, 3}}));
  ASSERT_EQ(said.size(), 2u);
  EXPECT_EQ(said[0].frame.kind, draft_message::want);
  EXPECT_EQ(said[0].frame.position, 2u);
  EXPECT_EQ(said[1].frame.response, response_id{2});
  EXPECT_EQ(said[1].frame.position, 0u);
}

TEST(draft_board, answers_who_wants_something) {
  board b;
  b.take("a", follow());
  b.take("a", wrote(1, 0, {5, 6, 7}));
  draft_frame want{.kind = draft_message::want, .group = group, .response = {1}};
  want.position = 1;
  const auto said = b.take("b", want);
  ASSERT_EQ(said.size(), 1u);
  EXPECT_EQ(said[0].frame.position, 1u);
  EXPECT_EQ(said[0].frame.tokens, (tokens{6, 7}));
  want.position = 3;
  EXPECT_TRUE(b.take("b", want).empty());
  want.position = 999;
  EXPECT_TRUE(b.take("b", want).empty());
  want.response = {2};
  EXPECT_TRUE(b.take("b", want).empty());
}

TEST(draft_board, keeps_nothing_of_a_group_that_nobody_follows) {
  board b;
  const auto said = b.take("a", wrote(1, 0, {5}));
  ASSERT_EQ(said.size(), 1u);
  EXPECT_EQ(said[0].frame.kind, draft_message::unknown);
  EXPECT_EQ(said[0].frame.incarnation, 42u);
  EXPECT_EQ(b.it.figures().bytes, 0u);
}

TEST(draft_board, believes_the_later_of_two_stories) {
  board b;
  b.take("a", follow());
  b.take("a", wrote(1, 0, {5, 6, 7}));
  auto said = b.take("b", wrote(1, 1, {9, 9}));
  EXPECT_EQ(b.it.figures().conflicts, 1u);
  EXPECT_TRUE(said.empty());
  EXPECT_TRUE(b.take("b", wrote(1, 3, {9}), 9s).empty()) << "two such would never end";
  said = b.take("b", wrote(1, 4, {9}), 11s);
  ASSERT_EQ(said.size(), 1u);
  EXPECT_EQ(said[0].frame.kind, draft_message::want);
  EXPECT_EQ(said[0].frame.position, 0u);
  said = b.take("b", wrote(1, 0, {5, 9, 9}), 11s);
  ASSERT_EQ(said.size(), 1u);
  EXPECT_EQ(said[0].frame.tokens, (tokens{5, 9, 9}));
}

TEST(draft_board, stays_within_its_memory_and_drops_the_longest_unused_group) {
  draft_board_limits limits;
  limits.bytes_max = 64 << 10;
  board b{limits};
  for (std::uint64_t name = 1; name <= 100; ++name) {
    b.take("a", follow({}, {name}));
    for (std::uint32_t at = 0; at < 1'000; at += 10) {
      b.take("a", wrote(1, at, counted(10), {name}));
      ASSERT_LE(b.it.figures().bytes, limits.bytes_max);
    }
    b.take("a", wrote(1, 0, counted(1), {1})); // group 1 is told nothing new: that is no use
  }
  EXPECT_GT(b.it.figures().groups, 5u);
  EXPECT_GT(b.it.figures().expired_groups, 50u);
  EXPECT_EQ(b.it.figures().groups + b.it.figures().expired_groups, 100u);
  EXPECT_EQ(b.it.figures().followers, b.it.figures().groups);
  const auto newest = b.take("b", follow({}, {100}));
  ASSERT_EQ(newest.size(), 1u);
  EXPECT_EQ(newest[0].frame.tokens.size(), 1'000u);
}

TEST(draft_board, keeps_an_old_group_that_is_still_written_to) {
  draft_board_limits limits;
  limits.bytes_max = 64 << 10;
  board b{limits};
  b.take("a", follow({}, {1}));
  for (std::uint32_t name = 2; name <= 100; ++name) {
    EXPECT_TRUE(b.take("a", wrote(1, name - 2, {5}, {1})).empty()) << "not unknown";
    b.take("a", follow({}, {name}));
    b.take("a", wrote(1, 0, counted(1'000), {name}));
  }
  EXPECT_GT(b.it.figures().expired_groups, 50u);
}

TEST(draft_board, refuses_what_one_group_alone_has_no_room_for) {
  draft_board_limits limits;
  limits.bytes_max = 16 << 10;
  board b{limits};
  b.take("a", follow());
  for (std::uint32_t at = 0; at < 10'000; at += 10)
    b.take("a", wrote(1, at, counted(10)), std::chrono::milliseconds{at});
  EXPECT_LE(b.it.figures().bytes, limits.bytes_max);
  EXPECT_GT(b.it.figures().refused, 0u);
  EXPECT_EQ(b.it.figures().groups, 1u);
}

TEST(draft_board, counts_what_short_streams_take_beside_their_tokens) {
  board b;
  b.take("a", follow());
  for (std::uint64_t response = 0; response < 1'000; ++response)
    b.take("a", wrote(response, 0, {5}));
  EXPECT_GT(b.it.figures().bytes, 1'000u * 100);
}

TEST(draft_board, forgets_silent_followers_and_then_their_groups) {
  board b;
  b.take("a", follow());
  b.take("b", follow());
  b.take("a", wrote(1, 0, {5}));
  b.take("b", follow({{{1}, 1, 0}}), 4s);
  b.it.expire(start + 8s);
  EXPECT_EQ(b.it.figures().followers, 1u);
  EXPECT_TRUE(b.take("b", wrote(1, 1, {6}), 8s).empty()) << "a is gone";
  b.it.expire(start + 30s);
  EXPECT_EQ(b.it.figures().followers, 0u);
  EXPECT_EQ(b.it.figures().groups, 1u) << "a member may come back";
  b.it.expire(start + 70s);
  EXPECT_EQ(b.it.figures().groups, 0u);
  EXPECT_EQ(b.it.figures().bytes, 0u);
}

TEST(draft_board, forgets_who_unfollows_or_cannot_be_reached) {
  board b;
  for (const char* peer : {"a", "b", "c"})
    b.take(peer, follow());
  b.take("b", {.kind = draft_message::unfollow, .group = group});
  b.take("b", {.kind = draft_message::unfollow, .group = group});
  b.it.forget("c");
  b.it.forget("c");
  EXPECT_TRUE(b.take("a", wrote(1, 0, {5})).empty());
  EXPECT_EQ(b.it.figures().followers, 1u);
  b.it.forget("a");
  b.it.expire(start + 2h);
  EXPECT_EQ(b.it.figures().bytes, 0u) << "everything that was charged was given back";
}

} // namespace
} // namespace rollcast
