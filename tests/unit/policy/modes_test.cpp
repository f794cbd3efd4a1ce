// Goal: what the modes divided and oracle, and context without probes, do differently.
// Method: one worker with few slots, so that each plan names whom the mode prefers; and the same
// scarce blocks as in mode context, which no mode with chunks may over-fill.

#include "tests/unit/policy/driver.hpp"

namespace rollcast::policy {
namespace {

using ids = std::vector<std::uint64_t>;

policy_limits limits_of(mode how, std::uint32_t chunk_tokens = 10) {
  auto limits = plain_limits(chunk_tokens);
  limits.rules.how = how;
  return limits;
}

/// Submits with the length that it will have.
void submit_known(driver& d, std::uint64_t response, std::uint64_t group, std::uint32_t index,
                  std::uint32_t length) {
  response_submitted e{response_id{response}, group_id{group}, index, 10, 100};
  e.tokens_expected = length;
  d.tell(e);
}

TEST(policy_modes, divided_goes_in_order_of_submission_without_probes) {
  driver d{limits_of(mode::divided)};
  d.submit(1, 1, 1, 20);
  d.submit(2, 1, 0, 20); // a probe elsewhere
  d.submit(3, 2, 0, 90); // longer, but later
  d.join(1, 100);
  EXPECT_EQ(d.order(), (ids{1, 2, 3}));
}

TEST(policy_modes, divided_cuts_chunks_and_a_response_keeps_its_turn) {
  driver d{limits_of(mode::divided)};
  d.join(1, 100, 1);
  d.submit(1, 1, 0);
  const auto first = d.dispatched();
  EXPECT_EQ(first.tokens_now, 10u);
  d.submit(2, 2, 0);
  d.edge(first, 10);
  EXPECT_EQ(d.order(), ids{1}) << "first come, first served until it ends";
}

TEST(policy_modes, divided_learns_nothing_from_what_has_finished) {
  driver d{limits_of(mode::divided, 0)};
  d.join(1, 100, 2);
  d.submit(1, 1, 0);
  d.submit(2, 2, 0);
  const auto both = d.dispatches();
  ASSERT_EQ(both.size(), 2u);
  d.submit(3, 1, 1);
  d.submit(4, 2, 1);
  d.complete(both[0], 10); // context would send 4 first
  EXPECT_EQ(d.order(), ids{3});
}

TEST(policy_modes, oracle_goes_by_true_length_inside_a_group_and_between_groups) {
  driver d{limits_of(mode::oracle)};
  submit_known(d, 1, 1, 0, 10); // no probe: it is the shortest
  submit_known(d, 2, 1, 1, 50);
  submit_known(d, 3, 2, 0, 40);
  submit_known(d, 4, 2, 1, 70);
  d.join(1, 100);
  EXPECT_EQ(d.order(), (ids{4, 2, 3, 1}));
}

TEST(policy_modes, oracle_counts_what_remains_and_takes_the_limit_for_what_it_is_not_told) {
  driver d{limits_of(mode::oracle)};
  d.join(1, 100, 1);
  submit_known(d, 1, 1, 0, 60);
  const auto first = d.dispatched();
  submit_known(d, 2, 2, 0, 55);
  d.edge(first, 10, false); // whose KV is there would go first
  EXPECT_EQ(d.order(), ids{2}) << "55 to go against 50";
  driver untold{limits_of(mode::oracle)};
  submit_known(untold, 1, 1, 0, 60);
  untold.submit(2, 2, 0); // may run to 100
  untold.join(1, 100, 1);
  EXPECT_EQ(untold.order(), ids{2});
}

TEST(policy_modes, modes_that_have_no_estimate_take_no_fair_turns) {
  for (const auto how : {mode::divided, mode::oracle}) {
    auto limits = limits_of(how);
    limits.fair_every = 1;
    driver d{limits};
    submit_known(d, 1, 1, 0, 90);
    submit_known(d, 2, 1, 1, 80);
    submit_known(d, 3, 2, 0, 10);
    d.join(1, 100);
    EXPECT_EQ(d.order(), (ids{1, 2, 3}));
    EXPECT_EQ(d.policy.counters().fair_turns, 0u);
  }
}

TEST(policy_modes, context_believes_what_a_group_is_told_until_a_member_outruns_it) {
  driver d{limits_of(mode::context)};
  submit_known(d, 1, 1, 1, 30);
  submit_known(d, 2, 2, 1, 50);
  submit_known(d, 3, 3, 1, 40);
  d.submit(4, 4, 1); // told nothing: last
  EXPECT_EQ(d.policy.estimate(group_id{2}), 50u);
  d.join(1, 100, 1);
  const auto longest = d.dispatched();
  EXPECT_EQ(longest.response, response_id{2});
  d.edge(longest, 10); // outlook times 10 is less than it was told
  EXPECT_EQ(d.policy.estimate(group_id{2}), 50u);
  driver ended{limits_of(mode::context)};
  ended.join(1, 100, 2);
  submit_known(ended, 1, 1, 1, 15);
  submit_known(ended, 2, 1, 2, 15);
  const auto both = ended.dispatches();
  ended.edge(both[1], 10);
  ended.edge(both[0], 10);
  ended.complete(ended.dispatches()[0], 15);
  EXPECT_EQ(ended.policy.estimate(group_id{1}), 15u) << "that was the longest";
  driver outrun{limits_of(mode::context)};
  submit_known(outrun, 1, 1, 1, 8);
  outrun.join(1, 100, 1);
  outrun.edge(outrun.dispatched(), 10);
  EXPECT_EQ(outrun.policy.estimate(group_id{1}), 30u) << "three times its furthest";
}

TEST(policy_modes, a_group_that_is_told_takes_no_fair_turns) {
  auto limits = limits_of(mode::context);
  limits.fair_every = 1;
  driver d{limits};
  submit_known(d, 1, 1, 1, 20);
  submit_known(d, 2, 2, 1, 90);
  d.join(1, 100);
  EXPECT_EQ(d.order(), (ids{2, 1}));
  EXPECT_EQ(d.policy.counters().fair_turns, 0u);
}

TEST(policy_modes, context_without_probes_treats_member_0_as_any_other) {
  auto limits = limits_of(mode::context);
  limits.rules.probe_first = false;
  driver d{limits};
  d.submit(1, 1, 1, 90);
  d.submit(2, 2, 0, 50);
  d.join(1, 100);
  EXPECT_EQ(d.order(), (ids{1, 2}));
}

TEST(policy_modes, every_mode_with_chunks_admits_only_what_fits) {
  for (const auto how : {mode::divided, mode::context, mode::oracle}) {
    driver d{limits_of(how)};
    d.join(1, 11); // ten tokens a block: one response whole, or five first chunks
    for (std::uint64_t r = 1; r <= 9; ++r)
      submit_known(d, r, r, 0, 80);
    EXPECT_EQ(d.dispatches().size(), 5u);
    EXPECT_EQ(d.policy.worker(worker_id{1})->reserved_blocks, 10u);
  }
}

} // namespace
} // namespace rollcast::policy
