// Goal: a rehearsal says what a step's drafts would have brought.
// Method: drafts and the tokens that are written meanwhile, by hand.

#include "engine/draft/rehearsal.hpp"

#include <gtest/gtest.h>

#include <vector>

namespace rollcast {
namespace {

using tokens = std::vector<token_id>;

/// Seats with these drafts, and steps in which each writes what it is told.
struct played {
  rehearsal sut;
  std::size_t seats = 0;

  explicit played(std::vector<std::vector<draft_token>> drafts, std::uint32_t depth = 4)
    : seats(drafts.size()) {
    std::vector<draft_seat> at;
    for (std::uint64_t i = 0; i < seats; ++i)
      at.push_back({{i + 1}, {}});
    sut.begin({.rows = 9, .seats = seats, .plain_s = 1, .drafted_s = 2}, at, depth);
    for (std::size_t i = 0; i < seats; ++i) {
      sut.of(i).draft = drafts[i];
      sut.of(i).chosen = drafts[i].size();
    }
  }

  /// `written`: by response, from 1.
  std::optional<rehearsal::outcome>
  step(const std::vector<std::pair<std::uint64_t, tokens>>& written) {
    std::vector<draft_outcome> outcomes;
    for (const auto& [response, fresh] : written)
      outcomes.push_back({{response}, {}, 0, fresh});
    return sut.hear(outcomes);
  }
};

const std::vector<draft_token> chain{{11, -1, 0.9f}, {12, 0, 0.9f}, {13, 1, 0.9f}};

TEST(rehearsal, counts_a_chain_until_it_is_wrong) {
  played p{{chain}};
  EXPECT_FALSE(p.step({{1, {11}}}));
  EXPECT_FALSE(p.step({{1, {12}}}));
  EXPECT_TRUE(p.sut.running());
  const auto would = p.step({{1, {99}}});
  ASSERT_TRUE(would);
  EXPECT_EQ(would->tokens, 3u) << "two that were right, and the one of any step";
  EXPECT_EQ(would->rows, 9u);
  EXPECT_EQ(would->drafted_s, 2);
  EXPECT_FALSE(p.sut.running());
  EXPECT_EQ(p.sut.parts()[0].accepted, 2u);
  EXPECT_EQ(p.sut.parts()[0].fresh, (tokens{11, 12, 99}));
  EXPECT_FALSE(p.step({{1, {13}}})) << "over";
}

TEST(rehearsal, a_draft_that_is_right_to_its_end_brings_one_token_more) {
  played p{{chain}};
  EXPECT_FALSE(p.step({{1, {11, 12}}})) << "two in one step: somebody else drafted";
  EXPECT_FALSE(p.step({{1, {13}}}));
  const auto would = p.step({{1, {14}}});
  ASSERT_TRUE(would);
  EXPECT_EQ(would->tokens, 4u);
}

TEST(rehearsal, follows_the_branch_that_is_right) {
  played p{{{{21, -1, 0.6f}, {22, 0, 0.9f}, {31, -1, 0.4f}, {32, 2, 0.9f}}}};
  const auto would = p.step({{1, {31, 32, 33}}});
  ASSERT_TRUE(would);
  EXPECT_EQ(would->tokens, 3u);
  EXPECT_EQ(p.sut.parts()[0].at, 3);
}

TEST(rehearsal, what_would_have_got_no_row_brings_nothing_but_is_compared) {
  played p{{chain}};
  p.sut.of(0).chosen = 1;
  const auto would = p.step({{1, {11, 12, 99}}});
  ASSERT_TRUE(would);
  EXPECT_EQ(would->tokens, 2u);
  EXPECT_EQ(p.sut.parts()[0].accepted, 2u);
}

TEST(rehearsal, waits_for_all_seats_in_any_order) {
  played p{{chain, {}, chain}};
  EXPECT_FALSE(p.step({{3, {11}}, {2, {50}}, {1, {51}}}));
  EXPECT_FALSE(p.step({{1, {11}}, {3, {12}}})) << "what the first writes now no longer counts";
  const auto would = p.step({{3, {90}}});
  ASSERT_TRUE(would);
  EXPECT_EQ(would->tokens, 3u + 2);
}

TEST(rehearsal, who_leaves_holds_nobody_up) {
  played p{{chain, chain}, 3};
  EXPECT_FALSE(p.step({{1, {11}}, {2, {11}}}));
  EXPECT_FALSE(p.step({{1, {12}}}));
  EXPECT_FALSE(p.step({{1, {13}}}));
  const auto would = p.step({{1, {14}}});
  ASSERT_TRUE(would);
  EXPECT_EQ(would->tokens, 2u + 3 + 1);
}

TEST(rehearsal, keeps_nothing_of_the_one_before) {
  played p{{chain, chain}};
  p.step({{1, {11}}});
  p.sut.stop();
  EXPECT_FALSE(p.step({{1, {12}}}));
  const draft_seat seat{{7}, {}};
  p.sut.begin({.rows = 1, .seats = 1}, {&seat, 1}, 4);
  EXPECT_EQ(p.sut.parts().size(), 1u);
  EXPECT_TRUE(p.sut.of(0).draft.empty());
  EXPECT_EQ(p.sut.of(0).chosen, 0u);
  const auto would = p.step({{7, {11}}});
  ASSERT_TRUE(would);
  EXPECT_EQ(would->tokens, 1u);
}

} // namespace
} // namespace rollcast
