// Goal: each mode drafts from what it may, within what it is given; nothing else is remembered.
// Method: streams written by hand; the engine's calls are played by the test.

#include "engine/draft/speculator.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

namespace rollcast {
namespace {

using tokens = std::vector<token_id>;

const tokens text{11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22};

speculation_options options_of(speculation how) {
  speculation_options options;
  options.how = how;
  options.tokens_max = 4;
  return options;
}

/// One response that has written `past`, and what is drafted for it.
tokens drafted(speculator& by, std::uint64_t response, const tokens& past, std::uint32_t room = 100,
               std::uint32_t rows_free = 100) {
  std::vector<draft_token> draft;
  const draft_seat seat{response_id{response}, past, room, &draft};
  by.draft({&seat, 1}, {1, rows_free, past.size()});
  tokens out;
  for (const auto& node : draft)
    out.push_back(node.token);
  return out;
}

TEST(speculator, self_knows_its_own_past_and_group_its_siblings) {
  for (const auto how : {speculation::self, speculation::group}) {
    speculator by{options_of(how)};
    by.follow({1}, {7}, true, text);
    const tokens start{11, 12, 13};
    by.follow({2}, {7}, false, start);
    EXPECT_EQ(drafted(by, 2, start),
              how == speculation::self ? tokens{} : (tokens{14, 15, 16, 17}));
    tokens again = text;
    again.insert(again.end(), {11, 12, 13});
    by.follow({1}, {7}, true, again);
    EXPECT_EQ(drafted(by, 1, again), (tokens{14, 15, 16, 17})) << "its own past";
  }
}

TEST(speculator, another_group_is_none_of_its_business) {
  speculator by{options_of(speculation::group)};
  by.follow({1}, {7}, true, text);
  by.follow({2}, {8}, false, tokens{11, 12, 13});
  EXPECT_TRUE(drafted(by, 2, {11, 12, 13}).empty());
}

TEST(speculator, drafts_no_more_than_there_is_room_and_rows_for) {
  speculator by{options_of(speculation::group)};
  by.follow({1}, {7}, true, text);
  const tokens start{11, 12, 13};
  by.follow({2}, {7}, false, start);
  EXPECT_EQ(drafted(by, 2, start, 2).size(), 2u);
  EXPECT_EQ(drafted(by, 2, start, 100, 1).size(), 1u);
  EXPECT_TRUE(drafted(by, 3, start).empty()) << "nobody told of it";
}

TEST(speculator, rows_go_to_a_probe_first) {
  speculator by{options_of(speculation::group)};
  by.follow({9}, {7}, false, text);
  const tokens start{11, 12, 13};
  by.follow({1}, {7}, false, start);
  by.follow({2}, {7}, true, start);
  std::vector<draft_token> a, b;
  const draft_seat seats[] = {{{1}, start, 9, &a}, {{2}, start, 9, &b}};
  by.draft(seats, {2, 4, 6});
  EXPECT_TRUE(a.empty());
  EXPECT_EQ(b.size(), 4u);
}

/// A speculator that has seen 11 12 13 go on with 21 twice and with 31 once; it drafts as much as
/// pays if it is given costs.
speculator of_two_minds(std::uint32_t width, std::uint32_t tokens_max,
                        const std::optional<step_costs>& costs = {}) {
  auto options = options_of(costs ? speculation::auto_ : speculation::group);
  options.tree_width = width;
  options.tokens_max = tokens_max;
  speculator by{options, costs};
  by.follow({1}, {7}, false, tokens{11, 12, 13, 21, 22, 23, 24});
  by.follow({2}, {7}, false, tokens{11, 12, 13, 31, 32, 33, 34});
  by.follow({3}, {7}, false, tokens{11, 12, 13, 21, 22, 23, 24});
  by.follow({4}, {7}, false, tokens{11, 12, 13});
  return by;
}

TEST(speculator, a_tree_tries_the_second_best_where_it_is_worth_more_than_going_on) {
  const tokens start{11, 12, 13};
  auto chains = of_two_minds(1, 8);
  EXPECT_EQ(drafted(chains, 4, start), (tokens{21, 22, 23, 24}));
  auto trees = of_two_minds(2, 8);
  // 21 and what follows has two chances in three, 31 and what follows one.
  EXPECT_EQ(drafted(trees, 4, start), (tokens{21, 22, 23, 24, 31, 32, 33, 34}));
  auto short_of_rows = of_two_minds(2, 8);
  EXPECT_EQ(drafted(short_of_rows, 4, start, 100, 5), (tokens{21, 22, 23, 24, 31}));
  auto short_of_room = of_two_minds(2, 8);
  EXPECT_EQ(drafted(short_of_room, 4, start, 2), (tokens{21, 22, 31, 32}));
}

TEST(speculator, the_parents_of_a_tree_are_those_of_the_tokens_that_got_a_row) {
  auto by = of_two_minds(2, 8);
  const tokens start{11, 12, 13};
  std::vector<draft_token> draft;
  const draft_seat seat{response_id{4}, start, 100, &draft};
  by.draft({&seat, 1}, {1, 6, 3});
  std::vector<std::int32_t> parents;
  for (const auto& node : draft)
    parents.push_back(node.parent);
  EXPECT_EQ(parents, (std::vector<std::int32_t>{-1, 0, 1, 2, -1, 4}));
  EXPECT_NEAR(draft[0].probability, 2.0 / 3, 1e-6);
  EXPECT_NEAR(draft[4].probability, 1.0 / 3, 1e-6);
}

TEST(speculator, auto_gives_a_branch_no_row_once_it_has_proved_wrong) {
  const step_costs costs{{{1, 1.0}, {11, 2.0}}, {}}; // a row more costs a tenth
  auto by = of_two_minds(2, 8, costs);
  const tokens start{11, 12, 13};
  EXPECT_EQ(drafted(by, 4, start), (tokens{21, 22, 23, 24, 31, 32, 33, 34}));
  by.follow({5}, {7}, false, tokens{51});
  const draft_token verified[] = {{21, -1, 2.0f / 3}, {31, -1, 1.0f / 3}};
  const tokens fresh{21, 99};
  const draft_outcome outcome{{5}, verified, 1, fresh};
  for (int step = 0; step < 60; ++step)
    by.learn({&outcome, 1}, {1, 10, 3}, costs.seconds({3, 3}));
  EXPECT_EQ(drafted(by, 4, start), (tokens{21, 22, 23, 24}));
}

TEST(speculator, what_a_sibling_generates_is_known_in_the_same_step) {
  speculator by{options_of(speculation::group)};
  const tokens start{11, 12, 13};
  by.follow({1}, {7}, true, start);
  by.follow({2}, {7}, false, start);
  const tokens longer{11, 12, 13, 14, 15, 16};
  std::vector<draft_token> a, b;
  const draft_seat seats[] = {{{2}, start, 9, &a}, {{1}, longer, 9, &b}};
  by.draft(seats, {2, 10, 9});
  ASSERT_EQ(a.size(), 3u) << "although it sits before the one that wrote them";
  EXPECT_EQ(a[0].token, 14u);
  EXPECT_EQ(a[2].token, 16u);
}

TEST(speculator, the_last_tokens_of_a_response_without_a_seat_are_known) {
  for (const bool parked : {true, false}) {
    speculator by{options_of(speculation::group)};
    const tokens start{11, 12, 13};
    by.follow({1}, {7}, true, start);
    by.follow({2}, {7}, false, start);
    for (const response_id response : {response_id{1}, response_id{3}}) // nobody told of 3
      parked ? by.parked(response, text) : by.gone(response, text);
    EXPECT_EQ(drafted(by, 2, start), (tokens{14, 15, 16, 17}));
    EXPECT_EQ(by.hear({7}, {1}, 0, {}), text.size()) << "what comes from elsewhere continues there";
  }
}

TEST(speculator, the_bound_holds_for_what_is_heard_while_nothing_is_looked_up) {
  auto options = options_of(speculation::group);
  options.bytes_max = 4 << 20;
  speculator by{options};
  tokens told(2'048);
  std::uint64_t most = 0;
  for (std::uint32_t step = 0; step < 1'000; ++step) {
    for (auto& token : told)
      token = (token * 31 + step) % 50'000;
    const group_id group{1 + step % 8};
    const auto has = by.hear(group, {group.value}, 0, {});
    by.hear(group, {group.value}, has, told);
    most = std::max(most, by.figures().bytes);
  }
  EXPECT_GT(most, options.bytes_max / 2);
  EXPECT_LE(by.figures().bytes, options.bytes_max);
  std::vector<draft_token> drafts[8];
  std::vector<draft_seat> seats;
  for (std::uint64_t g = 1; g <= 8; ++g) {
    by.follow({100 + g}, {g}, false, text);
    seats.push_back({{100 + g}, text, 9, &drafts[g - 1]});
  }
  by.draft(seats, {8, 100, 96});
  EXPECT_LE(by.figures().bytes, 2 * options.bytes_max) << "what waited takes more in the index";
}

TEST(speculator, a_response_that_was_further_elsewhere_drafts_nothing_until_it_is_there) {
  speculator by{options_of(speculation::group)};
  auto longer = text;
  longer.insert(longer.end(), {23, 24, 25, 26});
  by.follow({1}, {7}, true, longer);
  by.follow({2}, {7}, false, tokens{11, 12, 13});
  EXPECT_EQ(by.hear({7}, {2}, 0, text), text.size());
  EXPECT_TRUE(drafted(by, 2, {11, 12, 13}).empty()) << "what follows 22 does not follow 13";
  EXPECT_EQ(drafted(by, 2, text), (tokens{23, 24, 25, 26}));
}

TEST(speculator, nothing_is_indexed_while_nothing_is_looked_up) {
  // Drafts never pay, so `auto` looks ever more rarely.
  speculator by{options_of(speculation::auto_), step_costs{{{1, 1e-7}, {8, 1e-5}}, {}}};
  by.follow({1}, {7}, true, text);
  tokens own{11, 12, 13};
  by.follow({2}, {7}, false, own);
  const auto unwritten = by.figures().bytes;
  (void)drafted(by, 2, own);
  const auto written = by.figures().bytes;
  EXPECT_GT(written, 4 * unwritten);
  std::uint64_t skipped_before = 0, grew_while_skipping = 0, grew = 0;
  for (int step = 0; step < 400; ++step) {
    const auto before = by.figures().bytes;
    own.push_back(static_cast<token_id>(1'000 + step));
    if (step % 3 == 2)
      own.insert(own.end(), {11, 12, 13}); // something to find
    (void)drafted(by, 2, own);
    const bool skipped = by.figures().skipped > skipped_before;
    skipped_before = by.figures().skipped;
    const bool more = by.figures().bytes > before;
    grew += more;
    grew_while_skipping += skipped && more;
  }
  EXPECT_GT(grew, 0u);
  EXPECT_EQ(grew_while_skipping, 0u);
}

TEST(speculator, hears_of_a_sibling_only_what_continues_its_stream) {
  speculator by{options_of(speculation::group)};
  by.follow({2}, {7}, false, tokens{11, 12, 13});
  const std::span<const token_id> all{text};
  EXPECT_EQ(by.hear({7}, {1}, 0, all.first(5)), 5u);
  EXPECT_EQ(by.hear({7}, {1}, 8, all.subspan(8)), 5u) << "a gap: not taken";
  EXPECT_EQ(by.hear({7}, {1}, 2, all.subspan(2, 2)), 5u) << "old news";
  EXPECT_EQ(by.hear({7}, {1}, 3, all.subspan(3, 5)), 8u) << "an overlap";
  EXPECT_EQ(drafted(by, 2, {11, 12, 13}), (tokens{14, 15, 16, 17}));
}

TEST(speculator, forgets_the_group_that_was_used_longest_ago) {
  auto options = options_of(speculation::group);
  options.bytes_max = 8'000; // some blocks of 1.3 kB
  speculator by{options};
  for (std::uint64_t g = 1; g <= 20; ++g) {
    by.follow({g}, {g}, true, text);
    (void)drafted(by, g, text); // nothing, but now it is in the index
  }
  const draft_outcome nothing{{20}, {}, 0, {}};
  by.learn({&nothing, 1}, {1, 10, 3}, 0.01);
  EXPECT_LE(by.figures().bytes, options.bytes_max);
  EXPECT_LT(by.figures().groups, 20u);
  const tokens start{11, 12, 13};
  EXPECT_TRUE(drafted(by, 1, start).empty()) << "gone, and no harm done";
  const draft_outcome outcome{{1}, {}, 0, start};
  by.learn({&outcome, 1}, {1, 10, 3}, 0.01);
  by.follow({21}, {20}, false, start);
  EXPECT_EQ(drafted(by, 21, start).size(), 4u) << "the latest is there";
}

TEST(speculator, forgets_a_group_whose_responses_are_over) {
  for (const auto how : {speculation::group, speculation::self}) {
    speculator by{options_of(how)};
    by.follow({1}, {7}, true, text);
    by.follow({2}, {7}, false, text);
    by.follow({7}, {8}, true, text); // in `self` its number is that of the other group
    const auto before = by.figures().bytes;
    by.forget({7});
    EXPECT_EQ(by.figures().groups, 1u);
    EXPECT_LT(by.figures().bytes, before);
    EXPECT_TRUE(drafted(by, 1, {11, 12, 13}).empty());
    by.forget({8});
    EXPECT_EQ(by.figures().bytes, 0u);
    by.forget({8});
  }
}

TEST(speculator, auto_drafts_nothing_where_it_does_not_pay_and_looks_ever_more_rarely) {
  auto options = options_of(speculation::auto_);
  for (const bool dear : {true, false}) {
    speculator by{options, step_costs{{{1, 1e-7}, {8, dear ? 1e-5 : 1e-7}}, {}}};
    by.follow({1}, {7}, true, text);
    const tokens start{11, 12, 13};
    by.follow({2}, {7}, false, start);
    std::size_t steps_with_drafts = 0;
    for (int step = 0; step < 200; ++step)
      steps_with_drafts += !drafted(by, 2, start).empty();
    EXPECT_EQ(steps_with_drafts, dear ? 0u : 200u);
    EXPECT_EQ(by.figures().skipped > 150, dear);
    EXPECT_LT(by.figures().skipped, 200u) << "it asks again now and then";
  }
}

TEST(speculator, auto_looks_at_every_step_where_looking_costs_nothing_beside_the_step) {
  speculator by{options_of(speculation::auto_), step_costs{{{1, 10.0}, {8, 1000.0}}, {}}};
  by.follow({1}, {7}, true, text);
  const tokens start{11, 12, 13};
  by.follow({2}, {7}, false, start);
  for (int step = 0; step < 200; ++step)
    EXPECT_TRUE(drafted(by, 2, start).empty());
  EXPECT_EQ(by.figures().skipped, 0u);
}

} // namespace
} // namespace rollcast
