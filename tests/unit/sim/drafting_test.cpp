// Goal: drafts are accepted as often as published, by what a group has to offer, and no more is
// drafted than pays.
// Method: the published table against the curve and against tokens drawn one by one; groups whose
// members stand at known places; budgets at prices where the answer is known, and against every
// other number of rows.

#include "cluster/sim/drafting.hpp"
#include "engine/base/prng.hpp"

#include <gtest/gtest.h>

#include <cmath>

namespace rollcast::sim {
namespace {

constexpr std::array<std::pair<double, double>, 4> published{
  {{0, 1.70}, {1, 2.04}, {5, 2.32}, {15, 2.53}}};

/// A group of members of 1200, 500, 800 and 1000 tokens, and one response alone.
const workload& one_group() {
  static const workload out{
    "one group",
    1200,
    {{1, 0, 10, 1200}, {1, 1, 10, 500}, {1, 2, 10, 800}, {1, 3, 10, 1000}, {2, 0, 10, 1000}}};
  return out;
}

cost_model prices(double step, double row) {
  auto m = *find_cost_model("cpu");
  m.draft_step_s = step;
  m.draft_row_s = row;
  return m;
}

TEST(acceptance_curve, has_the_published_lengths_within_a_hundredth) {
  const acceptance_curve sut;
  for (const auto& [siblings, length] : published)
    EXPECT_NEAR(sut.at(acceptance_curve::level(siblings), 8).mean / length, 1, 0.01) << siblings;
  EXPECT_EQ(acceptance_curve::level(1e9), acceptance_curve::levels);
  for (std::uint32_t level = 1; level <= acceptance_curve::levels; ++level)
    EXPECT_GT(sut.at(level, 8).mean, sut.at(level - 1, 8).mean);
}

TEST(acceptance_curve, gives_mean_and_deviation_of_tokens_drawn_one_by_one) {
  const acceptance_curve sut;
  prng random{3};
  for (const auto& [siblings, length] : published)
    for (const std::uint32_t drafted : {1u, 3u, 8u}) {
      const auto level = acceptance_curve::level(siblings);
      const double chance = sut.at(level, 1).survival;
      double sum = 0, squares = 0;
      constexpr int draws = 40'000;
      for (int i = 0; i < draws; ++i) {
        double tokens = 1;
        while (tokens <= drafted && static_cast<double>(random.next() >> 11) * 0x1p-53 < chance)
          ++tokens;
        sum += tokens / draws;
        squares += tokens * tokens / draws;
      }
      EXPECT_NEAR(sut.at(level, drafted).mean, sum, 0.03) << siblings << " " << drafted;
      EXPECT_NEAR(sut.at(level, drafted).deviation, std::sqrt(squares - sum * sum), 0.03);
    }
}

TEST(drafting, counts_complete_siblings_whole_and_others_by_how_far_they_are_ahead) {
  drafting sut{one_group(), speculation::group, 1};
  const auto siblings = [](double n) { return acceptance_curve::level(n); };
  EXPECT_EQ(sut.level(0), siblings(0));
  const auto before = sut.version(0);
  sut.tell(1, 10 + 400);
  EXPECT_NE(sut.version(0), before);
  EXPECT_EQ(sut.level(0), siblings(1)); // all of it is ahead of a response at its start
  sut.tell(0, 10 + 100);
  EXPECT_EQ(sut.level(0), siblings(0.75));
  sut.tell(0, 10 + 400);
  EXPECT_EQ(sut.level(0), siblings(0)) << "lock step";
  sut.tell(1, 10 + 500);
  EXPECT_EQ(sut.level(0), siblings(1));
  sut.tell(2, 10 + 800);
  EXPECT_EQ(sut.level(0), siblings(2));
  sut.tell(0, 10 + 1000);
  EXPECT_EQ(sut.level(0), siblings(0.5 + 0.8)) << "outrun";
  EXPECT_EQ(sut.level(4), siblings(0)) << "another group";
}

TEST(drafting, of_ones_own_text_takes_nothing_from_siblings) {
  drafting sut{one_group(), speculation::self, 1};
  for (std::uint32_t i = 1; i < 4; ++i)
    sut.tell(i, 10 + one_group().responses[i].output_tokens);
  EXPECT_EQ(sut.level(0), 0u);
  EXPECT_EQ(sut.drafted(0, false, sut.choose(drafting::empty_census(), 1, prices(1, 1))), 8u);
}

TEST(drafting, drafts_nothing_where_rows_or_verifying_steps_are_dear) {
  const drafting sut{one_group(), speculation::auto_, 1};
  auto seats = drafting::empty_census();
  seats[30] = {20, 2};
  for (const auto& dear : {prices(0, 1), prices(100, 0)}) {
    const auto bar = sut.choose(seats, 1, dear);
    EXPECT_EQ(sut.drafted(30, false, bar), 0u);
    EXPECT_EQ(sut.drafted(acceptance_curve::levels, true, bar), 0u);
  }
  EXPECT_EQ(sut.drafted(30, false, sut.choose(seats, 1, prices(0, 0))), 8u);
}

TEST(drafting, takes_the_number_of_rows_that_makes_the_most_tokens_a_second) {
  const drafting sut{one_group(), speculation::auto_, 1};
  const acceptance_curve curve;
  for (const double row : {0.001, 0.01, 0.02, 0.03, 0.05})
    for (const double step : {0.0, 0.2, 0.4}) {
      auto seats = drafting::empty_census();
      seats[16] = {10, 0};
      const auto rate = [&](std::uint32_t drafted) {
        return 10 * curve.at(16, drafted).mean
               / (1 + (drafted > 0 ? step : 0) + 10 * drafted * row);
      };
      double best = rate(0);
      for (std::uint32_t n = 1; n <= 8; ++n)
        best = std::max(best, rate(n));
      const auto chosen = sut.drafted(16, false, sut.choose(seats, 1, prices(step, row)));
      EXPECT_GT(rate(chosen), best * 0.979) << row << " " << step; // a gain below 2 % is none
      EXPECT_GE(rate(chosen), rate(0));
    }
}

TEST(drafting, drafts_more_for_probes_and_in_the_tail) {
  const drafting sut{one_group(), speculation::auto_, 1};
  // Worth two tokens each, where rows are for 260: a probe's second one passes another's.
  auto many = drafting::empty_census();
  many[64] = {100, 0};
  many[16] = {0, 60};
  const auto bar = sut.choose(many, 1, prices(0, 0.0015));
  EXPECT_EQ(sut.drafted(16, true, bar), 2u);
  EXPECT_EQ(sut.drafted(16, false, bar), 1u);
  EXPECT_EQ(sut.drafted(64, false, bar), 1u);
  auto few = drafting::empty_census();
  few[64] = {10, 0};
  EXPECT_GT(sut.drafted(64, false, sut.choose(few, 1, prices(0, 0.0015))), 2u);
}

TEST(drafting, luck_belongs_to_the_response_and_its_place) {
  const drafting one{one_group(), speculation::group, 1}, two{one_group(), speculation::auto_, 1};
  const drafting other{one_group(), speculation::group, 2};
  EXPECT_EQ(one.luck(3, 512), two.luck(3, 512));
  EXPECT_NE(one.luck(3, 512), one.luck(2, 512));
  EXPECT_NE(one.luck(3, 512), one.luck(3, 513));
  EXPECT_NE(one.luck(3, 512), other.luck(3, 512));
}

} // namespace
} // namespace rollcast::sim
