// Goal: old, late, doubled and wrong news change nothing, limits hold, mode static_ binds groups.
// Method: tell each piece of news twice or at the wrong time, and look at verdict and state.

#include "tests/unit/policy/driver.hpp"

namespace rollcast::policy {
namespace {

using ids = std::vector<std::uint64_t>;

TEST(policy_news, only_the_current_holder_with_the_current_attempt_is_believed) {
  driver d{plain_limits()};
  d.join(1, 100);
  d.submit(1, 1, 0);
  const auto first = d.dispatched();
  d.tell(worker_lost{worker_id{1}});
  d.join(2, 100);
  const auto second = d.dispatched();
  EXPECT_EQ(second.attempt, 2u);
  const auto report = [&](worker_id w, std::uint32_t attempt) {
    return d.policy.on(chunk_finished{response_id{1}, w, attempt, 10, true, false});
  };
  EXPECT_EQ(report(first.worker, 1), verdict::stale);
  EXPECT_EQ(report(second.worker, 1), verdict::stale);
  EXPECT_EQ(report(first.worker, 2), verdict::stale);
  EXPECT_EQ(d.policy.on(chunk_failed{response_id{1}, first.worker, 1}), verdict::stale);
  EXPECT_EQ(report(second.worker, 2), verdict::accepted);
  EXPECT_EQ(report(second.worker, 2), verdict::stale);
}

TEST(policy_news, what_ended_stays_ended) {
  driver d{plain_limits()};
  d.join(1, 100);
  d.submit(1, 1, 0);
  d.complete(d.dispatched(), 5);
  const response_submitted again{response_id{1}, group_id{1}, 0, 10, 100};
  EXPECT_EQ(d.policy.on(again), verdict::stale);
  d.tell(group_closed{group_id{1}});
  EXPECT_EQ(d.policy.on(again), verdict::stale) << "the group is over";
  EXPECT_EQ(d.policy.on(group_closed{group_id{1}}), verdict::stale);
  EXPECT_EQ(d.policy.on(response_cancelled{response_id{1}}), verdict::stale);
  EXPECT_TRUE(d.dispatches().empty());
  EXPECT_EQ(d.policy.groups(), 0u);
}

TEST(policy_news, a_worker_that_was_lost_never_joins_again) {
  driver d{plain_limits()};
  d.join(1, 100);
  d.tell(worker_lost{worker_id{1}});
  EXPECT_EQ(d.policy.on(worker_joined{worker_id{1}, 100, 10, 1}), verdict::stale);
  EXPECT_EQ(d.policy.on(worker_lost{worker_id{1}}), verdict::stale);
  d.tell(worker_lost{worker_id{7}}); // the loss overtakes the joining
  EXPECT_EQ(d.policy.on(worker_joined{worker_id{7}, 100, 10, 1}), verdict::stale);
}

TEST(policy_news, chunks_of_a_lost_worker_go_back_to_their_last_edge) {
  driver d{plain_limits()};
  d.join(1, 100);
  d.submit(1, 1, 0);
  d.submit(2, 1, 1);
  const auto both = d.dispatches();
  d.edge(both[0], 10);
  ASSERT_EQ(d.dispatched().kv, kv_source::resume);
  d.edge(both[1], 10); // parked
  d.tell(worker_lost{worker_id{1}});
  EXPECT_EQ(d.policy.waiting(), 2u);
  d.join(2, 100);
  const auto again = d.dispatches();
  ASSERT_EQ(again.size(), 2u);
  for (const auto& x : again) {
    EXPECT_EQ(x.kv, kv_source::recompute);
    EXPECT_EQ(x.kv_blocks, 3u) << "10 prompt, 10 done, 10 now";
  }
}

TEST(policy_news, a_chunk_cut_before_its_first_token_leaves_everything_as_it_was) {
  driver d{plain_limits()};
  d.join(1, 100);
  d.submit(1, 1, 0);
  d.edge(d.dispatched(), 10); // parked on 1
  d.join(2, 100);
  d.tell(worker_draining{worker_id{1}});
  const auto moving = d.dispatched();
  ASSERT_EQ(moving.kv, kv_source::pull);
  d.join(3, 100);
  d.tell(worker_draining{worker_id{2}});
  d.edge(moving, 10, false);
  const auto again = d.dispatched();
  EXPECT_TRUE(d.releases.empty()) << "the source is still needed";
  EXPECT_EQ(again.kv, kv_source::pull);
  EXPECT_EQ(again.from, worker_id{1});
  EXPECT_EQ(again.worker, worker_id{3});
  EXPECT_EQ(again.attempt, moving.attempt + 1);
}

TEST(policy_news, kv_that_nobody_is_left_to_fetch_is_given_up) {
  driver d{plain_limits()};
  d.join(1, 100, 100, 1000);
  d.join(2, 100, 100, 1000);
  for (std::uint64_t id = 1; id <= 4; ++id)
    d.submit(id, id, 0);
  const auto all = d.dispatches();
  ASSERT_EQ(all.size(), 4u);
  d.edge(all[0], 5);
  d.edge(all[1], 5);
  d.tell(worker_draining{worker_id{1}});
  EXPECT_TRUE(d.policy.response(response_id{1})->kv_at) << "2 may fetch it";
  d.tell(worker_draining{worker_id{2}});
  d.edge(all[2], 5);
  EXPECT_TRUE(d.dispatches().empty());
  EXPECT_EQ(d.releases.size(), 3u);
  EXPECT_EQ(d.policy.worker(worker_id{1})->parked_blocks, 0u);
  EXPECT_EQ(d.policy.worker(worker_id{2})->parked_blocks, 0u);
  d.edge(all[3], 5);
  d.join(3, 100);
  EXPECT_EQ(d.dispatches().size(), 4u);
}

TEST(policy_news, lost_kv_is_forgotten_but_only_that_which_was_lost) {
  driver d{plain_limits()};
  d.join(1, 100, 1);
  d.submit(1, 1, 0);
  d.edge(d.dispatched(), 10);
  const auto second = d.dispatched();
  EXPECT_EQ(d.policy.on(kv_lost{response_id{1}, worker_id{1}, 1}), verdict::stale);
  d.edge(second, 20);
  EXPECT_EQ(d.policy.on(kv_lost{response_id{1}, worker_id{1}, 1}), verdict::stale)
    << "a late copy about KV of the first chunk";
  d.tell(kv_lost{response_id{1}, worker_id{1}, 2});
  EXPECT_EQ(d.policy.worker(worker_id{1})->parked_blocks, 0u);
  EXPECT_EQ(d.dispatched().kv, kv_source::recompute);
}

TEST(policy_news, a_failed_resume_forgets_the_kv_there) {
  driver d{plain_limits()};
  d.join(1, 100, 1);
  d.submit(1, 1, 0);
  d.edge(d.dispatched(), 10);
  const auto resumed = d.dispatched();
  ASSERT_EQ(resumed.kv, kv_source::resume);
  d.tell(chunk_failed{resumed.response, resumed.worker, resumed.attempt});
  EXPECT_EQ(d.dispatched().kv, kv_source::recompute);
}

TEST(policy_news, a_cancelled_response_is_released_wherever_it_is) {
  auto limits = plain_limits();
  limits.home_spread = 0;
  driver d{limits};
  d.join(1, 100, 2);
  d.submit(1, 1, 0);
  d.submit(2, 2, 0);
  const auto both = d.dispatches();
  d.join(2, 100);
  d.edge(both[0], 10);
  ASSERT_EQ(d.dispatched().kv, kv_source::pull);
  d.submit(3, 3, 0, 100);
  d.dispatches();
  d.tell(response_cancelled{response_id{1}}); // runs on 2, source on 1
  EXPECT_TRUE(d.dispatches().empty());
  EXPECT_EQ(d.releases, (std::vector<release>{{worker_id{2}, response_id{1}, 2},
                                              {worker_id{1}, response_id{1}, 1}}));
  d.tell(group_closed{group_id{2}}); // runs
  EXPECT_TRUE(d.dispatches().empty());
  EXPECT_EQ(d.releases, (std::vector<release>{{worker_id{1}, response_id{2}, 1}}));
  EXPECT_EQ(d.policy.worker(worker_id{1})->parked_blocks, 0u);
  EXPECT_EQ(d.policy.running(), 1u);
}

TEST(policy_news, a_report_of_impossible_numbers_is_refused) {
  driver d{plain_limits()};
  d.join(1, 100);
  d.submit(1, 1, 0, 15);
  const auto first = d.dispatched();
  const auto report = [&d](const dispatch& x, std::uint32_t done, bool complete) {
    return d.policy.on(chunk_finished{x.response, x.worker, x.attempt, done, complete, false});
  };
  EXPECT_EQ(report(first, 11, false), verdict::refused);
  EXPECT_EQ(d.policy.last_refusal().allowed, 10u);
  EXPECT_EQ(report(first, 10, false), verdict::accepted);
  const auto second = d.dispatched();
  EXPECT_EQ(report(second, 9, true), verdict::refused) << "tokens do not come back";
  EXPECT_EQ(report(second, 15, false), verdict::refused) << "at the limit it is complete";
  EXPECT_EQ(report(second, 15, true), verdict::accepted);
  EXPECT_EQ(d.policy.on(worker_joined{worker_id{2}, 10, 0, 1}), verdict::refused);
  EXPECT_EQ(d.policy.on(response_submitted{response_id{8}, group_id{8}, 0, 10, 0}),
            verdict::refused);
  EXPECT_EQ(d.policy.on(response_submitted{response_id{8}, group_id{8}, 0, 0x80000000u, 1}),
            verdict::refused);
}

TEST(policy_news, limits_on_responses_workers_and_decisions_hold) {
  auto limits = plain_limits();
  limits.responses_max = 3;
  limits.workers_max = 1;
  limits.decisions_per_plan = 2;
  driver d{limits};
  for (std::uint64_t r = 1; r <= 3; ++r)
    d.submit(r, r, 0);
  EXPECT_EQ(d.policy.on(response_submitted{response_id{4}, group_id{4}, 0, 10, 10}),
            verdict::refused);
  EXPECT_EQ(d.policy.last_refusal().reason, refusal_reason::responses_full);
  EXPECT_EQ(d.policy.response(response_id{4}), std::nullopt);
  d.join(1, 100);
  EXPECT_EQ(d.policy.on(worker_joined{worker_id{2}, 10, 10, 1}), verdict::refused);
  EXPECT_EQ(d.policy.last_refusal().reason, refusal_reason::workers_full);
  EXPECT_EQ(d.order(), (ids{1, 2}));
  EXPECT_EQ(d.order(), ids{3});
  for (std::uint64_t g = 1; g <= 3; ++g)
    d.tell(group_closed{group_id{g}});
  d.submit(5, 5, 0);
  EXPECT_TRUE(d.order().empty()) << "releases go first, and fill the plan";
  EXPECT_EQ(d.releases.size(), 2u);
  EXPECT_EQ(d.order(), ids{5});
  EXPECT_EQ(d.releases.size(), 1u);
}

// -- static_ --------------------------------------------------------------------------------------

policy_limits static_limits() {
  auto limits = plain_limits();
  limits.rules.how = mode::static_;
  return limits;
}

TEST(policy_static, whole_groups_are_bound_round_robin_and_run_at_once_without_reservation) {
  driver d{static_limits()};
  d.join(1, 20, 1);
  d.join(2, 20, 1);
  for (std::uint64_t g = 1; g <= 3; ++g)
    for (std::uint32_t i = 0; i < 2; ++i)
      d.submit(10 * g + i, g, i, 100);
  const auto all = d.dispatches();
  ASSERT_EQ(all.size(), 6u) << "slots do not hold them back";
  const ids responses{10, 11, 20, 21, 30, 31};
  const ids workers{1, 1, 2, 2, 1, 1};
  for (std::size_t i = 0; i < all.size(); ++i) {
    EXPECT_EQ(all[i].response.value, responses[i]);
    EXPECT_EQ(all[i].worker.value, workers[i]);
    EXPECT_EQ(all[i].tokens_now, 100u);
    EXPECT_EQ(all[i].kv_blocks, 0u);
  }
}

TEST(policy_static, groups_of_a_lost_worker_are_bound_to_the_least_bound_one) {
  driver d{static_limits()};
  for (std::uint64_t w = 1; w <= 3; ++w)
    d.join(w, 20);
  for (std::uint64_t g = 1; g <= 3; ++g) // workers 1, 2, 3
    d.submit(g, g, 0);
  const auto all = d.dispatches();
  ASSERT_EQ(all.size(), 3u);
  d.complete(all[1], 5); // worker 2 has no group left
  d.tell(worker_lost{worker_id{3}});
  const auto again = d.dispatched();
  EXPECT_EQ(again.response, response_id{3});
  EXPECT_EQ(again.worker, worker_id{2}) << "worker 1 would be next in the round";
}

TEST(policy_static, new_members_of_a_group_do_not_go_to_a_draining_worker) {
  driver d{static_limits()};
  d.join(1, 20);
  d.join(2, 20);
  d.submit(1, 1, 0);
  ASSERT_EQ(d.dispatched().worker, worker_id{1});
  d.tell(worker_draining{worker_id{1}});
  d.submit(2, 1, 1);
  EXPECT_EQ(d.dispatched().worker, worker_id{2});
}

} // namespace
} // namespace rollcast::policy
