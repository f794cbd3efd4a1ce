// Goal: drafting goes on where the clock says that it pays, and where it does not costs little.
// Method: steps of given seconds, with drafts whenever the guard admits them, as an engine would
// run them.
#include "engine/draft/draft_guard.hpp"

#include <gtest/gtest.h>

#include <random>

namespace rollcast {
namespace {

/// Steps of a batch of `rows`, in which drafts bring `gain` times the tokens a second.
struct run {
  double gain = 1;
  double slowness = 1; ///< Of all steps against the table.
  std::uint32_t rows = 16;
  double seconds = 0;
  double tokens = 0;
  int with_drafts = 0;

  void steps(draft_guard& guard, int count) {
    constexpr double table_s = 0.01;
    for (int i = 0; i < count; ++i) {
      const auto spent = table_s * slowness;
      if (guard.admits(rows)) {
        ++with_drafts;
        guard.drafted(rows, 2 * spent / gain, table_s, std::size_t{2} * rows, rows);
        seconds += 2 * spent / gain;
        tokens += 2.0 * rows;
      } else {
        guard.plain(rows, spent, table_s);
        seconds += spent;
        tokens += rows;
      }
    }
  }
  /// Tokens a second over those of a run without drafts.
  double over_off() const { return tokens / seconds * 0.01 * slowness / rows; }
};

TEST(draft_guard, lets_drafts_be_that_pay) {
  draft_guard guard;
  run r{.gain = 1.5};
  r.steps(guard, 1000);
  EXPECT_EQ(r.with_drafts, 1000);
}

TEST(draft_guard, loses_at_most_one_percent_where_drafts_never_pay) {
  for (const double gain : {0.5, 0.8, 0.9, 0.96, 1.0}) {
    draft_guard guard;
    run r{.gain = gain};
    r.steps(guard, 200);
    EXPECT_GT(r.over_off(), gain < 0.8 ? 0.85 : 0.96) << "at first, gain " << gain;
    r.steps(guard, 20'000);
    EXPECT_GT(r.over_off(), 0.99) << "gain " << gain;
    EXPECT_GT(r.with_drafts, 3 * 4) << "it tries again now and then";
  }
}

TEST(draft_guard, judges_by_steps_without_drafts_and_not_by_the_table) {
  draft_guard guard;
  run r{.gain = 1.3, .slowness = 1.5}; // by the table alone it would look like a loss
  r.steps(guard, 1000);
  EXPECT_GT(r.with_drafts, 900);
}

TEST(draft_guard, finds_out_when_drafts_begin_to_pay) {
  draft_guard guard;
  run vain{.gain = 0.8};
  vain.steps(guard, 5000);
  run r{.gain = 2};
  r.steps(guard, 2000);
  EXPECT_GT(r.with_drafts, 1400);
}

TEST(draft_guard, a_rehearsal_that_promises_much_ends_a_hold_after_its_first_quarter) {
  draft_guard guard;
  run vain{.gain = 0.8};
  vain.steps(guard, 5000);
  while (!guard.admits(16)) {
  }
  while (guard.hold_left(16) == 0)
    guard.drafted(16, 0.025, 0.01, 32, 16);
  const auto held = guard.hold_left(16);
  ASSERT_GT(held, 400u);
  for (int i = 0; i < 3; ++i)
    guard.rehearsed(16, 0.02, 0.01, 64, 16);
  EXPECT_EQ(guard.hold_left(16), held) << "three say little";
  for (int i = 0; i < 3; ++i)
    guard.rehearsed(16, 0.02, 0.01, 64, 16);
  EXPECT_NEAR(guard.hold_left(16), held / 4.0, 2);
}

TEST(draft_guard, a_rehearsal_that_promises_little_changes_nothing) {
  draft_guard guard;
  run vain{.gain = 0.8};
  vain.steps(guard, 5000);
  const auto held = guard.hold_left(16);
  ASSERT_GT(held, 0u);
  for (int i = 0; i < 1000; ++i)
    guard.rehearsed(16, 0.02, 0.01, 33, 16); // a gain of 1.03
  EXPECT_EQ(guard.hold_left(16), held);
}

TEST(draft_guard, promises_that_are_always_false_cost_little) {
  for (const double promised : {1.1, 1.4, 3.0})
    for (const double gain : {0.7, 0.9, 1.0}) {
      draft_guard guard;
      run r{.gain = gain};
      for (int i = 0; i < 20'000; ++i) {
        r.steps(guard, 1);
        guard.rehearsed(16, 2 * 0.01 / promised, 0.01, 32, 16);
      }
      EXPECT_GT(r.over_off(), 0.985) << "promised " << promised << ", gain " << gain;
    }
}

TEST(draft_guard, luck_in_few_rows_shuts_nothing_out_that_pays) {
  // One row: a draft brings 1 to 3 tokens in 1.6 times the time, 1.25 times the tokens a second.
  draft_guard guard;
  std::mt19937 random{7};
  std::size_t with_drafts = 0;
  for (int i = 0; i < 20'000; ++i)
    if (guard.admits(1)) {
      ++with_drafts;
      guard.drafted(1, 0.016, 0.01, 1 + random() % 3, 1);
    } else {
      guard.plain(1, 0.01, 0.01);
    }
  EXPECT_GT(with_drafts, 19'000u);
}

TEST(draft_guard, judges_each_size_of_batch_by_itself) {
  draft_guard guard;
  run large{.gain = 0.8, .rows = 64};
  large.steps(guard, 100);
  run small{.gain = 2, .rows = 2};
  small.steps(guard, 100);
  EXPECT_EQ(small.with_drafts, 100);
}

TEST(draft_guard, makes_nothing_of_a_step_that_was_held_up) {
  draft_guard guard;
  for (int i = 0; i < 100; ++i)
    guard.drafted(16, i % 10 == 0 ? 10.0 : 0.015, 0.01, 32, 16);
  EXPECT_TRUE(guard.admits(16));
}

} // namespace
} // namespace rollcast
