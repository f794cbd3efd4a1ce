// Goal: who goes first (rules 1 to 4) and how long a chunk is.
// Method: one worker with one slot, so that each plan names the one response the rules prefer.

#include "tests/unit/policy/driver.hpp"

namespace rollcast::policy {
namespace {

using ids = std::vector<std::uint64_t>;

TEST(policy_order, probes_go_before_everything_else) {
  driver d{plain_limits()};
  d.submit(1, 1, 1);
  d.submit(2, 1, 0);
  d.submit(3, 2, 1);
  d.submit(4, 2, 0);
  d.join(1, 100);
  EXPECT_EQ(d.order(), (ids{2, 4, 1, 3}));
}

TEST(policy_order, the_probe_with_the_fewest_tokens_done_goes_first) {
  driver d{plain_limits()};
  d.join(1, 100, 1);
  d.submit(1, 1, 0);
  const auto first = d.dispatched();
  d.submit(2, 2, 0);
  d.edge(first, 10);
  EXPECT_EQ(d.order(), ids{2}) << "probe 1 has 10 tokens done, probe 2 none";
}

TEST(policy_order, the_group_expected_to_run_longest_goes_first) {
  driver d{plain_limits(0)};
  d.join(1, 100, 2);
  d.submit(1, 1, 0);
  d.submit(2, 2, 0);
  const auto probes = d.dispatches();
  ASSERT_EQ(probes.size(), 2u);
  d.submit(3, 1, 1);
  d.submit(4, 2, 1);
  d.complete(probes[0], 30);
  d.complete(probes[1], 60);
  EXPECT_EQ(d.policy.estimate(group_id{2}), 60u);
  EXPECT_EQ(d.order(), (ids{4, 3}));
}

TEST(policy_order, a_group_of_which_nothing_is_known_goes_behind_those_expected_to_run_on) {
  driver d{plain_limits(0)};
  d.join(1, 100, 1);
  d.submit(1, 1, 0);
  const auto probe = d.dispatched();
  d.submit(2, 2, 1); // group 2 has no probe, may run to 100, and nothing is known of it
  d.submit(3, 1, 1);
  d.complete(probe, 20);
  EXPECT_EQ(d.policy.estimate(group_id{2}), std::nullopt);
  EXPECT_EQ(d.order(), ids{3});
}

TEST(policy_order, a_group_is_expected_to_outlast_its_furthest_unfinished_member) {
  auto limits = plain_limits();
  limits.outlook = 3;
  driver d{limits};
  d.join(1, 100, 2);
  d.submit(1, 1, 0);
  d.submit(2, 1, 1);
  auto both = d.dispatches();
  ASSERT_EQ(both.size(), 2u);
  d.edge(both[0], 10);
  EXPECT_EQ(d.policy.estimate(group_id{1}), 30u);
  d.edge(both[1], 8);
  EXPECT_EQ(d.policy.estimate(group_id{1}), 30u) << "that member is not the furthest";
  both = d.dispatches();
  ASSERT_EQ(both.size(), 2u);
  d.complete(both[1], 9); // a finish that is shorter says less
  EXPECT_EQ(d.policy.estimate(group_id{1}), 30u);
  d.edge(both[0], 20);
  EXPECT_EQ(d.policy.estimate(group_id{1}), 60u);
  d.complete(d.dispatched(), 25);
  EXPECT_EQ(d.policy.estimate(group_id{1}), 60u);
}

TEST(policy_order, the_group_whose_unfinished_member_is_further_goes_first) {
  driver d{plain_limits(20)};
  d.join(1, 100, 2);
  d.submit(1, 1, 0);
  d.submit(2, 2, 0);
  const auto probes = d.dispatches();
  ASSERT_EQ(probes.size(), 2u);
  d.submit(3, 1, 1); // below 4 by id
  d.submit(4, 2, 1);
  d.edge(probes[0], 10);
  d.edge(probes[1], 20); // 60 expected against 30
  d.tell(response_cancelled{response_id{1}});
  d.tell(response_cancelled{response_id{2}});
  EXPECT_EQ(d.order(), (ids{4, 3}));
}

TEST(policy_order, progress_told_by_the_journal_counts_for_the_group) {
  driver d{plain_limits()};
  d.tell(response_submitted{response_id{1}, group_id{1}, 0, 10, 100, 20, {}});
  EXPECT_EQ(d.policy.estimate(group_id{1}), 60u);
}

TEST(policy_order, who_has_kv_parked_goes_before_who_has_none_however_long) {
  driver d{plain_limits()};
  d.join(1, 100, 1);
  d.submit(1, 1, 1);
  const auto first = d.dispatched();
  d.submit(2, 2, 0);
  d.edge(first, 10);
  const auto probe = d.dispatched(); // probes go before all
  ASSERT_EQ(probe.response, response_id{2});
  d.submit(3, 2, 1);
  d.complete(probe, 10); // 10 expected of response 3
  d.tell(response_submitted{response_id{4}, group_id{3}, 1, 10, 100, 33, {}}); // 66 to go
  EXPECT_EQ(d.order(), ids{1}) << "20 to go, and its KV is there";
}

TEST(policy_order, who_lost_its_parked_kv_stands_with_those_who_have_none) {
  for (const bool worker_is_lost : {false, true}) {
    driver d{plain_limits()};
    d.join(1, 100, 1);
    d.submit(1, 1, 1);
    const auto first = d.dispatched();
    d.tell(response_submitted{response_id{2}, group_id{2}, 1, 10, 100, 20, {}}); // 40 to go
    d.edge(first, 10);                                                           // 20 to go
    if (worker_is_lost) {
      d.tell(worker_lost{worker_id{1}});
      d.join(2, 100, 1);
    } else {
      d.tell(kv_lost{response_id{1}, worker_id{1}, first.attempt});
    }
    EXPECT_EQ(d.order(), ids{2});
  }
}

TEST(policy_order, a_shorter_finish_does_not_lower_an_estimate_and_a_longer_one_raises_it) {
  driver d{plain_limits(0)};
  d.join(1, 100, 3);
  for (std::uint32_t i = 0; i < 3; ++i)
    d.submit(1 + i, 1, i);
  const auto all = d.dispatches();
  ASSERT_EQ(all.size(), 3u);
  d.complete(all[0], 50);
  d.complete(all[1], 20);
  EXPECT_EQ(d.policy.estimate(group_id{1}), 50u);
  d.complete(all[2], 80);
  EXPECT_EQ(d.policy.estimate(group_id{1}), 80u);
}

TEST(policy_order, among_siblings_without_kv_the_one_that_has_done_least_goes_first) {
  driver d{plain_limits()};
  d.join(1, 100, 2);
  d.submit(1, 1, 0);
  d.submit(2, 1, 1);
  const auto both = d.dispatches();
  ASSERT_EQ(both.size(), 2u);
  d.complete(both[0], 5);
  d.edge(both[1], 10, false); // outran its sibling: 20 more expected
  d.submit(3, 1, 2);          // 30 expected
  EXPECT_EQ(d.order(), (ids{3, 2}));
}

TEST(policy_order, every_third_placement_goes_to_the_group_served_least) {
  auto limits = plain_limits();
  limits.fair_every = 3;
  driver d{limits};
  for (std::uint64_t r = 1; r <= 4; ++r)
    d.submit(r, 1, static_cast<std::uint32_t>(r), 100);
  d.submit(9, 2, 1, 20); // expected to be shorter than any of group 1
  d.join(1, 1000);
  EXPECT_EQ(d.order(), (ids{1, 2, 9, 3, 4}));
  EXPECT_EQ(d.policy.counters().fair_turns, 1u);
}

TEST(policy_order, service_is_counted_for_each_live_member) {
  auto limits = plain_limits();
  limits.fair_every = 1;
  limits.rules.probe_first = false;
  driver d{limits};
  d.join(1, 100, 3);
  d.submit(1, 1, 0);
  d.submit(2, 1, 1);
  d.submit(3, 1, 2);
  d.submit(9, 2, 0);
  // Alternating would give group 2, with one member, as much as group 1 with three.
  auto first = d.dispatches();
  ASSERT_EQ(first.size(), 3u);
  EXPECT_EQ(first[0].response, response_id{1});
  EXPECT_EQ(first[1].response, response_id{9});
  EXPECT_EQ(first[2].response, response_id{2}) << "a third of a chunk each against a whole one";
  d.edge(first[1], 10);
  EXPECT_EQ(d.order(), ids{3});
}

TEST(policy_order, a_chunk_is_cut_at_the_budget_and_at_the_limit) {
  driver d{plain_limits(40)};
  d.join(1, 100);
  d.submit(1, 1, 0, 100);
  auto chunk = d.dispatched();
  EXPECT_EQ(chunk.tokens_now, 40u);
  EXPECT_EQ(chunk.kv_blocks, 5u) << "(10 prompt + 40) / 10";
  d.edge(chunk, 40);
  chunk = d.dispatched();
  d.edge(chunk, 80);
  chunk = d.dispatched();
  EXPECT_EQ(chunk.tokens_now, 20u);
  EXPECT_EQ(chunk.attempt, 3u);
  EXPECT_EQ(chunk.kv, kv_source::resume);
}

TEST(policy_order, chunk_tokens_0_is_unlimited_and_a_group_may_bring_its_own_rules) {
  driver d{plain_limits(0)};
  d.join(1, 100);
  d.submit(1, 1, 0, 100);
  d.tell(response_submitted{response_id{2}, group_id{2}, 0, 10, 100, 0,
                            group_rules{mode::context, 7, false}});
  const auto both = d.dispatches();
  ASSERT_EQ(both.size(), 2u);
  EXPECT_EQ(both[0].tokens_now, 100u);
  EXPECT_EQ(both[1].tokens_now, 7u);
}

TEST(policy_order, a_response_from_the_journal_goes_on_at_its_last_edge) {
  driver d{plain_limits(0)};
  d.join(1, 100);
  d.tell(response_submitted{response_id{1}, group_id{1}, 0, 10, 100, 64, {}});
  const auto chunk = d.dispatched();
  EXPECT_EQ(chunk.tokens_now, 36u);
  EXPECT_EQ(chunk.kv, kv_source::recompute);
}

} // namespace
} // namespace rollcast::policy
