// Goal: where a chunk runs and what becomes of KV (rules 5 to 8).
// Method: workers of few blocks of 10 tokens; prompts fill one block, chunks of 10 tokens another.

#include "tests/unit/policy/driver.hpp"

namespace rollcast::policy {
namespace {

using ids = std::vector<std::uint64_t>;

/// A worker of two slots that has both taken, and another that joined then: whoever comes to an
/// edge at home finds it crowded and moves.
struct crowded_home : driver {
  explicit crowded_home(policy_limits limits = plain_limits()) : driver(spread_to_none(limits)) {
    join(1, 100, 2);
    submit(1, 1, 0);
    submit(2, 2, 0, 100);
    both = dispatches();
    join(2, 100);
  }
  std::vector<dispatch> both;

private:
  static policy_limits spread_to_none(policy_limits limits) {
    limits.home_spread = 0;
    return limits;
  }
};

TEST(policy_placement, a_worker_takes_no_chunk_whose_blocks_do_not_fit) {
  driver d{plain_limits()};
  d.join(1, 5);
  for (std::uint64_t r = 1; r <= 3; ++r)
    d.submit(r, r, 0, 20);
  EXPECT_EQ(d.order(), (ids{1, 2})) << "two blocks each, five in all";
  EXPECT_EQ(d.policy.worker(worker_id{1})->reserved_blocks, 4u);
  EXPECT_EQ(d.policy.waiting(), 1u);
}

TEST(policy_placement, a_worker_takes_no_more_responses_than_it_has_slots) {
  driver d{plain_limits()};
  d.join(1, 100, 2);
  for (std::uint64_t r = 1; r <= 3; ++r)
    d.submit(r, r, 0);
  EXPECT_EQ(d.order(), (ids{1, 2}));
}

TEST(policy_placement, room_is_reserved_in_steps_so_that_who_goes_on_needs_no_more) {
  auto limits = plain_limits();
  limits.reserve_tokens = 40;
  driver d{limits};
  d.join(1, 9); // blocks of 10 tokens; a prompt takes one, a step four
  d.submit(1, 1, 1, 60);
  d.submit(2, 2, 1, 60);
  auto first = d.dispatched();
  EXPECT_EQ(first.tokens_now, 10u);
  EXPECT_EQ(first.kv_blocks, 5u) << "the second would fit its chunk, not its step";
  for (std::uint32_t done = 10; done < 40; done += 10) {
    d.edge(first, done);
    first = d.dispatched();
    EXPECT_EQ(first.response.value, 1u);
    EXPECT_EQ(first.kv_blocks, 5u);
  }
  d.edge(first, 40);
  first = d.dispatched();
  EXPECT_EQ(first.kv_blocks, 7u) << "to its limit, which comes before the second step";
}

TEST(policy_placement, a_step_never_asks_for_more_than_the_largest_worker) {
  auto limits = plain_limits();
  limits.reserve_tokens = 40;
  driver d{limits};
  d.join(1, 3);
  d.submit(1, 1, 1, 20);
  EXPECT_EQ(d.dispatched().kv_blocks, 3u);
}

TEST(policy_placement, the_least_loaded_worker_takes_it_then_the_roomiest_then_the_lowest_id) {
  driver d{plain_limits()};
  d.join(3, 20);
  d.join(2, 20);
  d.join(1, 19);
  for (std::uint64_t r = 1; r <= 4; ++r)
    d.submit(r, r, 0);
  ids workers;
  for (const auto& x : d.dispatches())
    workers.push_back(x.worker.value);
  EXPECT_EQ(workers, (ids{2, 3, 1, 2}));
}

TEST(policy_placement, a_response_larger_than_every_worker_is_refused_with_the_numbers) {
  driver d{plain_limits()};
  d.join(1, 5);
  d.join(2, 10);
  EXPECT_EQ(d.policy.on(response_submitted{response_id{1}, group_id{1}, 0, 10, 91}),
            verdict::refused);
  EXPECT_EQ(d.policy.last_refusal().reason, refusal_reason::larger_than_fleet);
  EXPECT_EQ(d.policy.last_refusal().wanted, 101u);
  EXPECT_EQ(d.policy.last_refusal().allowed, 100u);
  EXPECT_FALSE(d.policy.response(response_id{1}));
  d.submit(2, 1, 0, 90);
}

TEST(policy_placement, what_no_live_worker_can_hold_is_stranded_and_blocks_nobody) {
  driver d{plain_limits(0)};
  d.submit(1, 1, 0, 100); // before anybody joined: not refused
  d.submit(2, 2, 0, 20);
  d.join(1, 5);
  EXPECT_EQ(d.order(), ids{2});
  EXPECT_EQ(d.policy.stranded(), 1u);
  EXPECT_EQ(d.policy.waiting(), 1u);
  d.join(2, 11);
  EXPECT_EQ(d.order(), ids{1});
  EXPECT_EQ(d.policy.stranded(), 0u);
}

TEST(policy_placement, home_is_kept_while_loads_are_near_equal_and_left_when_they_are_not) {
  auto limits = plain_limits();
  limits.home_spread = 1;
  driver d{limits};
  d.join(1, 100);
  d.submit(1, 1, 0);
  const auto first = d.dispatched();
  d.edge(first, 10);
  d.join(2, 100);
  d.submit(2, 2, 1, 10);
  auto next = d.dispatches(); // probe 1 at home; 2 to the empty worker
  ASSERT_EQ(next.size(), 2u);
  EXPECT_EQ(next[0].worker, worker_id{1});
  EXPECT_EQ(next[0].kv, kv_source::resume);
  d.submit(3, 3, 1, 10);
  d.submit(4, 4, 1, 10);
  auto more = d.dispatches(); // 3 -> worker 2 or 1 by room, 4 -> the other
  ASSERT_EQ(more.size(), 2u);
  // Empty worker 2, load worker 1: home now runs two more than the other.
  for (const auto& x : {next[1], more[0], more[1]})
    if (x.worker == worker_id{2})
      d.complete(x, 5);
  d.submit(5, 5, 1, 10);
  ASSERT_EQ(d.dispatched().worker, worker_id{2});
  d.edge(next[0], 20);
  const auto back = d.dispatched();
  EXPECT_EQ(back.worker, worker_id{1}) << "one other runs at each";
}

TEST(policy_placement, a_crowded_home_is_left_by_a_pull_when_moving_is_cheap) {
  crowded_home d;
  d.edge(d.both[0], 10);
  const auto moved = d.dispatched();
  EXPECT_EQ(moved.worker, worker_id{2});
  EXPECT_EQ(moved.kv, kv_source::pull);
  EXPECT_EQ(moved.from, worker_id{1});
  EXPECT_TRUE(d.releases.empty()) << "the source keeps it until the move is confirmed";
  EXPECT_EQ(d.policy.worker(worker_id{1})->parked_blocks, 2u);
  d.tell(kv_moved{moved.response, moved.worker, moved.attempt});
  EXPECT_TRUE(d.dispatches().empty());
  EXPECT_EQ(d.releases, (std::vector<release>{{worker_id{1}, response_id{1}, 1}}));
  EXPECT_EQ(d.policy.worker(worker_id{1})->parked_blocks, 0u);
}

TEST(policy_placement, a_crowded_home_is_left_by_recomputing_when_moving_is_dear) {
  auto limits = plain_limits();
  limits.prices.move_ps_per_byte = 1'000'000'000;
  crowded_home d{limits};
  d.edge(d.both[0], 10);
  const auto moved = d.dispatched();
  EXPECT_EQ(moved.worker, worker_id{2});
  EXPECT_EQ(moved.kv, kv_source::recompute);
  EXPECT_EQ(d.releases, (std::vector<release>{{worker_id{1}, response_id{1}, 1}}));
  EXPECT_EQ(d.policy.counters().recomputed_tokens, 20u);
}

TEST(policy_placement, a_worker_that_has_measured_is_priced_by_that) {
  crowded_home d;
  // 20 tokens of 1000 bytes: 200 us to pull, 100 us to compute, on the worker that does it.
  d.tell(worker_priced{worker_id{2}, {0, 10'000, 0, 5'000}});
  d.edge(d.both[0], 10);
  const auto moved = d.dispatched();
  EXPECT_EQ(moved.worker, worker_id{2});
  EXPECT_EQ(moved.kv, kv_source::recompute);
}

TEST(policy_placement, what_a_worker_no_longer_knows_has_the_price_of_the_limits_again) {
  crowded_home d;
  d.tell(worker_priced{worker_id{2}, {0, 10'000, 0, 5'000}});
  d.tell(worker_priced{worker_id{2}, {}});
  d.edge(d.both[0], 10);
  EXPECT_EQ(d.dispatched().kv, kv_source::pull);
  EXPECT_EQ(d.policy.on(worker_priced{worker_id{3}, {}}), verdict::stale) << "nobody of that name";
}

TEST(policy_placement, a_finished_chunk_frees_the_source_though_no_confirmation_came) {
  crowded_home d;
  d.edge(d.both[0], 10);
  const auto moved = d.dispatched();
  d.complete(moved, 15);
  EXPECT_TRUE(d.dispatches().empty());
  EXPECT_EQ(d.releases, (std::vector<release>{{worker_id{1}, response_id{1}, 1}}));
  EXPECT_EQ(d.policy.on(kv_moved{moved.response, moved.worker, moved.attempt}), verdict::stale);
}

TEST(policy_placement, a_failed_pull_leaves_the_kv_at_home_and_is_not_tried_again) {
  crowded_home d;
  d.edge(d.both[0], 10);
  const auto moved = d.dispatched();
  d.tell(chunk_failed{moved.response, moved.worker, moved.attempt});
  EXPECT_EQ(d.policy.response(response_id{1})->kv_at, worker_id{1});
  const auto again = d.dispatched();
  EXPECT_EQ(again.worker, worker_id{2});
  EXPECT_EQ(again.kv, kv_source::recompute);
}

TEST(policy_placement, a_source_that_outlives_the_target_is_the_home_again) {
  crowded_home d;
  d.edge(d.both[0], 10);
  ASSERT_EQ(d.dispatched().kv, kv_source::pull);
  d.tell(worker_lost{worker_id{2}});
  const auto again = d.dispatched();
  EXPECT_EQ(again.worker, worker_id{1});
  EXPECT_EQ(again.kv, kv_source::resume);
}

TEST(policy_placement, parked_kv_of_the_lowest_priority_makes_room_when_nothing_else_fits) {
  driver d{plain_limits()};
  d.join(1, 6, 3);
  for (std::uint64_t r = 1; r <= 3; ++r)
    d.submit(r, r, 1, static_cast<std::uint32_t>(50 - 10 * r)); // 40, 30, 20 expected
  const auto all = d.dispatches();
  ASSERT_EQ(all.size(), 3u);
  for (const auto& x : all)
    d.edge(x, 10); // six blocks parked: full
  d.submit(9, 9, 0, 10);
  EXPECT_EQ(d.order(), (ids{9, 1})) << "the probe, then the longest with what is left";
  EXPECT_EQ(d.releases, (std::vector<release>{{worker_id{1}, response_id{3}, 1},
                                              {worker_id{1}, response_id{2}, 1}}));
  EXPECT_EQ(d.policy.counters().evictions, 2u);
}

TEST(policy_placement, news_of_a_group_changes_whose_kv_makes_room) {
  for (const bool news : {false, true}) {
    driver d{plain_limits()};
    d.join(1, 6, 3);
    d.submit(1, 1, 1, 50);
    d.submit(2, 2, 1, 50);
    d.submit(3, 2, 2, 50);
    const auto all = d.dispatches();
    ASSERT_EQ(all.size(), 3u);
    d.edge(all[0], 10); // 30 expected, 20 to go
    d.edge(all[1], 9);  // 27 expected, 18 to go
    if (news)
      d.edge(all[2], 10, false); // 30 expected of group 2 too: 21 to go
    else
      d.complete(all[2], 10); // 27 are expected already
    d.tell(response_submitted{response_id{9}, group_id{9}, 0, 30, 10});
    EXPECT_EQ(d.dispatches().front().response, response_id{9});
    EXPECT_EQ(d.releases, (std::vector<release>{{worker_id{1}, response_id{news ? 1u : 2u}, 1}}));
  }
}

TEST(policy_placement, one_whose_kv_was_evicted_goes_behind_those_who_have_theirs) {
  driver d{plain_limits()};
  d.join(1, 4, 2);
  d.submit(1, 1, 1, 30);
  d.submit(2, 2, 1, 30);
  const auto both = d.dispatches();
  ASSERT_EQ(both.size(), 2u);
  d.edge(both[0], 10);
  d.edge(both[1], 9); // gives way: 18 to go against 20
  d.submit(9, 9, 0, 10);
  const auto probe = d.dispatched();
  EXPECT_EQ(d.releases, (std::vector<release>{{worker_id{1}, response_id{2}, 1}}));
  d.complete(probe, 10);
  EXPECT_EQ(d.order(), ids{1});
}

TEST(policy_placement, kv_of_a_stranded_response_makes_room_too) {
  driver d{plain_limits()};
  d.submit(1, 1, 1); // before anybody joined: not refused
  d.join(1, 5);
  for (std::uint32_t done = 10; done <= 40; done += 10)
    d.edge(d.dispatched(), done);
  EXPECT_TRUE(d.dispatches().empty());
  ASSERT_EQ(d.policy.stranded(), 1u);
  ASSERT_EQ(d.policy.worker(worker_id{1})->parked_blocks, 5u);
  d.submit(2, 2, 1, 20);
  EXPECT_EQ(d.order(), ids{2});
  EXPECT_EQ(d.policy.stranded(), 1u);
}

TEST(policy_placement, a_source_of_an_unconfirmed_pull_is_not_evicted) {
  auto limits = plain_limits();
  limits.home_spread = 0;
  driver d{limits};
  d.join(1, 4, 2);
  d.submit(1, 1, 0, 20);
  d.submit(2, 2, 0, 20);
  const auto both = d.dispatches();
  d.join(2, 3);
  d.edge(both[0], 10);
  ASSERT_EQ(d.dispatched().kv, kv_source::pull); // worker 1: 2 reserved, 2 pinned
  d.submit(3, 3, 0, 20);
  EXPECT_TRUE(d.dispatches().empty());
  EXPECT_TRUE(d.releases.empty());
}

TEST(policy_placement, kv_stays_rather_than_make_room_for_a_fair_turn) {
  auto limits = plain_limits();
  limits.fair_every = 1;
  for (const std::uint32_t bonus : {0u, 10u}) {
    limits.resident_bonus_tokens = bonus;
    driver d{limits};
    d.join(1, 4, 1);
    d.submit(1, 1, 1, 30);
    const auto first = d.dispatched();
    d.edge(first, 10); // two of four blocks parked
    // Served least, and needs three blocks: it must evict.
    d.tell(response_submitted{response_id{5}, group_id{5}, 1, 15, 25});
    EXPECT_EQ(d.order(), bonus == 0 ? ids{5} : ids{1}) << "bonus " << bonus;
  }
}

TEST(policy_placement, one_that_was_overtaken_often_is_overtaken_no_more) {
  auto limits = plain_limits(0);
  limits.overtakes_max = 2;
  driver d{limits};
  d.join(1, 10);
  d.submit(1, 1, 0, 10);
  const auto small = d.dispatched(); // two of ten blocks
  d.submit(2, 2, 0, 90);             // needs all ten
  for (std::uint64_t r = 3; r <= 6; ++r) {
    d.submit(r, r, 1, 5); // two blocks each, behind it in line
    EXPECT_EQ(d.order(), r <= 4 ? ids{r} : ids{}) << r;
  }
  d.complete(small, 5);
  EXPECT_TRUE(d.dispatches().empty()) << "room is kept for response 2";
}

TEST(policy_placement, forced_migration_leaves_home_at_every_edge_and_stays_when_alone) {
  auto limits = plain_limits();
  limits.rules.force_migration = true;
  driver d{limits};
  d.join(1, 100);
  d.submit(1, 1, 0);
  auto chunk = d.dispatched();
  d.edge(chunk, 10);
  chunk = d.dispatched();
  EXPECT_EQ(chunk.kv, kv_source::resume) << "with one worker it goes on at home";
  d.join(2, 100);
  for (std::uint32_t done = 20; done < 60; done += 10) {
    d.edge(chunk, done);
    const auto next = d.dispatched();
    EXPECT_NE(next.worker, chunk.worker);
    EXPECT_EQ(next.kv, kv_source::pull);
    EXPECT_EQ(next.from, chunk.worker);
    chunk = next;
  }
}

TEST(policy_placement, a_draining_worker_takes_no_chunk_and_its_kv_may_be_pulled) {
  driver d{plain_limits()};
  d.join(1, 100);
  d.submit(1, 1, 0);
  const auto first = d.dispatched();
  d.join(2, 100);
  d.tell(worker_draining{worker_id{1}});
  d.edge(first, 10);
  const auto next = d.dispatched();
  EXPECT_EQ(next.worker, worker_id{2});
  EXPECT_EQ(next.kv, kv_source::pull);
}

} // namespace
} // namespace rollcast::policy
