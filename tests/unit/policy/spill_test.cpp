// Goal: KV that must leave its blocks is kept in spill space where that pays, and found again.
// Method: as in placement_test.cpp: workers of few blocks of 10 tokens, chunks of 10 tokens.

#include "tests/unit/policy/driver.hpp"

namespace rollcast::policy {
namespace {

using ids = std::vector<std::uint64_t>;

/// A worker of four blocks that has two responses parked and gets a probe that needs two.
struct crowded : driver {
  explicit crowded(std::uint64_t spill_tokens, policy_limits limits = plain_limits())
    : driver(limits) {
    join(1, 4, 2, spill_tokens);
    submit(1, 1, 1, 30);
    submit(2, 2, 1, 30);
    const auto both = dispatches();
    edge(both[0], 10);
    edge(both[1], 9); // 19 tokens of KV; gives way: 18 to go against 20
    submit(9, 9, 0, 10);
    probe = dispatched();
  }
  dispatch probe;
};

TEST(policy_spill, kv_that_must_make_room_is_spilled_and_resumed_at_home) {
  crowded d{19};
  EXPECT_EQ(d.spills, (std::vector<spill>{{worker_id{1}, response_id{2}, 1}}));
  EXPECT_TRUE(d.releases.empty());
  EXPECT_EQ(d.policy.response(response_id{2})->kv_at, worker_id{1});
  EXPECT_TRUE(d.policy.response(response_id{2})->spilled);
  EXPECT_EQ(d.policy.worker(worker_id{1})->spilled_tokens, 19u);
  EXPECT_EQ(d.policy.worker(worker_id{1})->parked_blocks, 2u);
  d.complete(d.probe, 10);
  const auto first = d.dispatched(); // the one with its KV in blocks goes first, alone fits
  EXPECT_EQ(first.response, response_id{1});
  d.complete(first, 20);
  const auto back = d.dispatched();
  EXPECT_EQ(back.response, response_id{2});
  EXPECT_EQ(back.kv, kv_source::resume);
  EXPECT_EQ(back.kv_blocks, 3u) << "all of its blocks anew";
  EXPECT_EQ(d.policy.counters().restores, 1u);
  EXPECT_EQ(d.policy.counters().recomputes, 0u);
  EXPECT_EQ(d.policy.worker(worker_id{1})->spilled_tokens, 0u);
}

TEST(policy_spill, takes_whole_pages_of_the_space) {
  driver d{plain_limits()};
  d.tell(worker_joined{worker_id{1}, 4, 10, 2, 1000, 40, 16});
  d.submit(1, 1, 1, 30);
  d.submit(2, 2, 1, 30);
  const auto both = d.dispatches();
  d.edge(both[0], 10);
  d.edge(both[1], 9);
  d.submit(9, 9, 0, 10);
  (void)d.dispatched();
  ASSERT_EQ(d.spills.size(), 1u);
  EXPECT_EQ(d.policy.worker(worker_id{1})->spilled_tokens, 32u) << "19 tokens in pages of 16";
}

TEST(policy_spill, without_enough_space_it_is_dropped) {
  crowded d{18};
  EXPECT_TRUE(d.spills.empty());
  EXPECT_EQ(d.releases, (std::vector<release>{{worker_id{1}, response_id{2}, 1}}));
  EXPECT_FALSE(d.policy.response(response_id{2})->kv_at);
}

TEST(policy_spill, kv_that_is_cheaper_to_compute_again_is_dropped) {
  auto limits = plain_limits();
  limits.prices.recompute_ns_per_token = 999; // 1000 bytes a token at 1 GB/s: 1000 ns to bring back
  EXPECT_TRUE(crowded(100, limits).spills.empty());
  limits.prices.recompute_ns_per_token = 1000;
  EXPECT_EQ(crowded(100, limits).spills.size(), 1u);
}

TEST(policy_spill, another_worker_pulls_what_is_spilled_and_only_then_is_it_let_go) {
  crowded d{100};
  d.join(2, 10);
  const auto all = d.dispatches();
  ASSERT_EQ(all.size(), 2u);
  const auto pulled = all[0].response == response_id{2} ? all[0] : all[1];
  ASSERT_EQ(pulled.response, response_id{2});
  EXPECT_EQ(pulled.kv, kv_source::pull);
  EXPECT_EQ(pulled.from, worker_id{1});
  EXPECT_EQ(d.policy.worker(worker_id{1})->spilled_tokens, 19u) << "until the move is confirmed";
  d.tell(kv_moved{response_id{2}, worker_id{2}, pulled.attempt});
  EXPECT_EQ(d.policy.worker(worker_id{1})->spilled_tokens, 0u);
  (void)d.dispatches();
  EXPECT_EQ(d.releases.front(), (release{worker_id{1}, response_id{2}, 1}));
}

TEST(policy_spill, a_pull_that_fails_leaves_it_spilled_at_home) {
  crowded d{100};
  d.join(2, 10);
  for (const auto& x : d.dispatches())
    if (x.response == response_id{2})
      d.tell(chunk_failed{x.response, x.worker, x.attempt});
  EXPECT_TRUE(d.policy.response(response_id{2})->spilled);
  EXPECT_EQ(d.policy.response(response_id{2})->kv_at, worker_id{1});
  EXPECT_EQ(d.policy.worker(worker_id{1})->spilled_tokens, 19u);
}

TEST(policy_spill, a_lost_worker_and_an_end_give_the_space_back) {
  crowded lost{100};
  lost.tell(worker_lost{worker_id{1}});
  EXPECT_FALSE(lost.policy.response(response_id{2})->kv_at);
  EXPECT_FALSE(lost.policy.response(response_id{2})->spilled);
  EXPECT_EQ(lost.policy.waiting(), 3u);

  crowded cancelled{100};
  cancelled.tell(response_cancelled{response_id{2}});
  EXPECT_EQ(cancelled.policy.worker(worker_id{1})->spilled_tokens, 0u);
  (void)cancelled.dispatches();
  EXPECT_EQ(cancelled.releases.front(), (release{worker_id{1}, response_id{2}, 1}));

  crowded said{100};
  said.tell(kv_lost{response_id{2}, worker_id{1}, 1});
  EXPECT_EQ(said.policy.worker(worker_id{1})->spilled_tokens, 0u);
  EXPECT_FALSE(said.policy.response(response_id{2})->kv_at);
}

} // namespace
} // namespace rollcast::policy
