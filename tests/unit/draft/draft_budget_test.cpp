// Goal: as many drafted tokens get a row as pay, zero included, and what is measured is learned.
// Method: cost tables and chances made by hand, in round numbers.

#include "engine/draft/draft_budget.hpp"

#include <gtest/gtest.h>

#include <vector>

namespace rollcast {
namespace {

/// A pass costs a fixed second and `per_row` more for each row.
step_costs costs_of(double per_row, kv_cost kv = {}) {
  std::vector<step_cost> points;
  for (const std::uint32_t rows : {1u, 2u, 4u, 8u, 16u})
    points.push_back({rows, 1 + per_row * rows});
  return {points, kv};
}

TEST(draft_budget, every_token_pays_when_rows_are_free_and_none_when_they_are_dear) {
  const std::vector<float> survivals{0.9f, 0.5f, 0.2f};
  EXPECT_EQ(choose_budget(survivals, 1, {1, 9, 0, 0}, costs_of(0)), 3u);
  EXPECT_EQ(choose_budget(survivals, 1, {1, 9, 0, 0}, costs_of(100)), 0u)
    << "a second row doubles the step";
  EXPECT_EQ(choose_budget({}, 1, {1, 9, 0, 0}, costs_of(0)), 0u);
}

TEST(draft_budget, stops_where_one_more_token_costs_more_than_it_brings) {
  // n rows cost 1 + 0.3 n: 1 / 1.3, then 1.9 / 1.6, 2.4 / 1.9 and 2.5 / 2.2 tokens a second.
  const std::vector<float> survivals{0.9f, 0.5f, 0.1f};
  EXPECT_EQ(choose_budget(survivals, 1, {1, 9, 0, 0}, costs_of(0.3)), 2u);
}

TEST(draft_budget, a_gain_within_the_margin_is_none) {
  const std::vector<float> survivals{0.25f}; // 1.25 / 1.6 against 1 / 1.3: 1.6 % more
  EXPECT_EQ(choose_budget(survivals, 1, {1, 9, 0, 0}, costs_of(0.3), 0.01), 1u);
  EXPECT_EQ(choose_budget(survivals, 1, {1, 9, 0, 0}, costs_of(0.3), 0.02), 0u);
}

TEST(draft_budget, counts_the_cached_positions_that_a_drafted_row_attends_to) {
  const std::vector<float> survivals{0.9f};
  EXPECT_EQ(choose_budget(survivals, 1, {1, 9, 1000, 1000}, costs_of(0)), 1u);
  EXPECT_EQ(choose_budget(survivals, 1, {1, 9, 1000, 1000}, costs_of(0, {1, 1})), 0u)
    << "each row reads them all";
  EXPECT_EQ(choose_budget(survivals, 1, {1, 9, 1000, 1000}, costs_of(0, {1, 0.1})), 1u)
    << "what the response's own row has read is cheap to read again";
}

TEST(step_costs, lie_on_lines_between_what_was_measured) {
  const step_costs costs{{{1, 1.0}, {4, 4.0}, {8, 6.0}}, {0.5, 0.25}};
  EXPECT_DOUBLE_EQ(costs.seconds({1, 0}), 1.0);
  EXPECT_DOUBLE_EQ(costs.seconds({2, 0}), 2.0);
  EXPECT_DOUBLE_EQ(costs.seconds({6, 0}), 5.0);
  EXPECT_DOUBLE_EQ(costs.seconds({16, 0}), 12.0) << "past the end in proportion";
  EXPECT_DOUBLE_EQ(costs.seconds({4, 10}), 9.0);
  EXPECT_DOUBLE_EQ(costs.seconds({4, 10, 8}), 11.0);
}

TEST(step_costs, follow_the_steps_that_run) {
  step_costs costs{{{1, 1.0}, {8, 2.0}}, {}};
  for (int i = 0; i < 200; ++i)
    costs.observe({8, 0}, 3.0);
  EXPECT_NEAR(costs.seconds({8, 0}), 3.0, 0.01);
  EXPECT_DOUBLE_EQ(costs.first_seconds({8, 0}), 2.0);
  costs.observe({8, 0}, 3000); // one step that was held up
  EXPECT_LT(costs.seconds({8, 0}), 3.3);
}

TEST(step_costs, do_not_make_drafts_look_cheap_where_all_steps_are_slower_than_measured) {
  step_costs costs{{{8, 8.0}, {16, 16.0}, {32, 32.0}}, {}};
  for (int i = 0; i < 100; ++i)
    costs.observe({16, 0}, 24.0); // no drafts: nothing is seen of 32 rows
  const auto row = (costs.seconds({20, 0}) - costs.seconds({16, 0})) / 4;
  EXPECT_GT(row, 0.9 * costs.seconds({16, 0}) / 16);
}

TEST(step_costs, learn_in_time_what_is_true_of_one_size_alone) {
  step_costs costs{{{1, 1.0}, {8, 2.0}}, {}};
  for (int i = 0; i < 4000; ++i) {
    costs.observe({1, 0}, 1.0);
    costs.observe({8, 0}, 3.0);
  }
  EXPECT_NEAR(costs.seconds({1, 0}), 1.0, 0.05);
  EXPECT_NEAR(costs.seconds({8, 0}), 3.0, 0.15);
}

TEST(acceptance, believes_the_drafter_first_and_then_what_it_sees) {
  acceptance seen;
  EXPECT_FLOAT_EQ(seen.chance(0, 0.8f, 0.8f), 0.8f);
  for (int i = 0; i < 1000; ++i)
    seen.observe(0, 0.8f, i % 4 == 0);
  EXPECT_NEAR(seen.chance(0, 0.8f, 0.8f), 0.25f, 0.03f);
  EXPECT_FLOAT_EQ(seen.chance(1, 0.8f, 0.8f), 0.8f) << "another place in the draft";
  EXPECT_FLOAT_EQ(seen.chance(0, 0.3f, 0.3f), 0.3f) << "another probability";
  for (int i = 0; i < 1000; ++i)
    seen.observe(0, 0.8f, true);
  EXPECT_GT(seen.chance(0, 0.8f, 0.8f), 0.75f) << "what is long ago is forgotten";
}

} // namespace
} // namespace rollcast
