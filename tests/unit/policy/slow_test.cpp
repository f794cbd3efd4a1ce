// Goal: a worker that is ten times slower than its peers does not hold up the end of a batch: what
// runs there is cut and goes on elsewhere; and while all are alike, or work waits, nothing is cut.
// Method: rule by rule through the driver; then a batch on made-up workers of known speed, tick by
// tick, with the rule and without it. Every response's length is fixed, so makespans compare.

#include "tests/unit/policy/driver.hpp"

#include <cstdio>
#include <map>

namespace rollcast::policy {
namespace {

std::vector<cut> cuts_of(scheduler_policy& policy) {
  std::vector<cut> out;
  for (const auto& d : policy.plan())
    if (const auto* c = std::get_if<cut>(&d))
      out.push_back(*c);
  return out;
}

struct policy_slow : testing::Test {
  /// Two responses, one on each of two workers, of which the second is ten times slower.
  policy_slow() {
    d.join(1, 100);
    d.join(2, 100);
    d.submit(1, 1, 0);
    d.submit(2, 2, 0);
    for (const auto& x : d.dispatches())
      running[x.worker.value] = x;
  }
  void pace(std::uint64_t first, std::uint64_t second) {
    d.tell(worker_paced{worker_id{1}, first});
    d.tell(worker_paced{worker_id{2}, second});
  }
  driver d{plain_limits(1000)};
  std::map<std::uint64_t, dispatch> running;
};

TEST_F(policy_slow, a_chunk_on_a_much_slower_worker_is_cut_and_goes_on_at_the_faster) {
  pace(1'000, 10'000);
  const auto cuts = cuts_of(d.policy);
  ASSERT_EQ(cuts.size(), 1u);
  EXPECT_EQ(cuts[0], (cut{worker_id{2}, running[2].response, running[2].attempt}));
  pace(1'000, 10'000);
  EXPECT_TRUE(cuts_of(d.policy).empty()) << "it was told";
  d.edge(running[2], 7);
  const auto next = d.dispatched();
  EXPECT_EQ(next.response, running[2].response);
  EXPECT_EQ(next.worker, worker_id{1}) << "not home, where it is slow";
  EXPECT_EQ(next.kv, kv_source::pull);
  EXPECT_EQ(next.from, worker_id{2});
  EXPECT_EQ(d.policy.counters().cuts, 1u);
}

TEST_F(policy_slow, one_that_was_cut_before_its_first_token_does_not_go_back_either) {
  pace(1'000, 10'000);
  ASSERT_EQ(cuts_of(d.policy).size(), 1u);
  d.edge(running[2], 0, false);
  EXPECT_EQ(d.dispatched().worker, worker_id{1});
}

TEST_F(policy_slow, nothing_is_cut_for_a_little_or_while_others_wait_or_without_figures) {
  pace(1'000, 2'900);
  EXPECT_TRUE(cuts_of(d.policy).empty()) << "less than three times";
  pace(0, 10'000);
  EXPECT_TRUE(cuts_of(d.policy).empty()) << "nobody knows how fast the other one is";
  d.tell(worker_draining{worker_id{1}});
  pace(1'000, 10'000);
  EXPECT_TRUE(cuts_of(d.policy).empty()) << "the faster one takes nothing";
}

TEST_F(policy_slow, a_slow_worker_is_better_than_none) {
  pace(1'000, 10'000);
  ASSERT_EQ(cuts_of(d.policy).size(), 1u);
  d.tell(worker_lost{worker_id{1}});
  d.edge(running[2], 7);
  EXPECT_EQ(d.dispatches().size(), 2u) << "in the same plan: no other event may follow";
}

/// Workers that take `token_ms` for a token of each response that they run, and `start_ms` for
/// whatever has no KV there.
struct tick_fleet {
  struct chunk {
    dispatch d;
    std::uint32_t done = 0;
    std::uint64_t since = 0;
  };
  static constexpr std::uint64_t start_ms = 30;

  tick_fleet(std::vector<std::uint64_t> token_ms, std::uint32_t slow_factor)
    : token_ms_(std::move(token_ms)), d_(limits(slow_factor)) {
    for (std::uint64_t w = 1; w <= token_ms_.size(); ++w)
      d_.join(w, 10'000, 8);
  }

  static policy_limits limits(std::uint32_t slow_factor) {
    policy_limits out;
    out.slow_factor = slow_factor;
    out.rules.chunk_tokens = 512;
    return out;
  }

  /// Runs 32 groups of 4 to their end. @returns when that was, in ms.
  std::uint64_t run() {
    for (std::uint64_t r = 0; r < 128; ++r)
      d_.submit(r + 1, r / 4 + 1, static_cast<std::uint32_t>(r % 4), 2'000);
    std::uint64_t now = 0;
    for (; finished_ < 128 && now < 1'000'000; ++now) {
      if (now % 100 == 0)
        for (std::uint64_t w = 0; w < token_ms_.size(); ++w)
          d_.tell(worker_paced{worker_id{w + 1}, token_ms_[w] * 1'000'000});
      carry_out(now);
      advance(now);
    }
    return now;
  }

  std::uint64_t cuts() const { return d_.policy.counters().cuts; }

private:
  static std::uint32_t length_of(response_id r) {
    const auto x = r.value * 0x9e3779b97f4a7c15u;
    return 100 + static_cast<std::uint32_t>((x >> 40) % 1'500);
  }

  void carry_out(std::uint64_t now) {
    for (bool more = true; more;) {
      const auto decisions = d_.policy.plan();
      more = !decisions.empty();
      for (const auto& decided : decisions) {
        if (const auto* x = std::get_if<dispatch>(&decided)) {
          running_[x->response.value] = {*x, 0, now + (x->kv == kv_source::resume ? 0 : start_ms)};
          if (x->kv == kv_source::pull)
            d_.tell(kv_moved{x->response, x->worker, x->attempt});
        } else if (const auto* c = std::get_if<cut>(&decided)) {
          const auto it = running_.find(c->response.value);
          const auto was = it->second;
          running_.erase(it);
          done_[c->response.value] += was.done;
          d_.tell(chunk_finished{c->response, c->worker, c->attempt, done_[c->response.value],
                                 false, was.done > 0});
        }
      }
    }
  }

  void advance(std::uint64_t now) {
    for (auto it = running_.begin(); it != running_.end();) {
      auto& c = it->second;
      const auto each = token_ms_[c.d.worker.value - 1];
      if (now < c.since || (now - c.since) % each != 0) {
        ++it;
        continue;
      }
      ++c.done;
      const auto all = done_[it->first] + c.done;
      const bool complete = all == length_of(c.d.response);
      if (!complete && c.done < c.d.tokens_now) {
        ++it;
        continue;
      }
      done_[it->first] = all;
      finished_ += complete;
      d_.tell(chunk_finished{c.d.response, c.d.worker, c.d.attempt, all, complete, !complete});
      it = running_.erase(it);
    }
  }

  std::vector<std::uint64_t> token_ms_;
  driver d_;
  std::map<std::uint64_t, chunk> running_;
  std::map<std::uint64_t, std::uint32_t> done_;
  std::size_t finished_ = 0;
};

TEST(policy_slow_fleet, one_worker_of_four_ten_times_slower_does_not_hold_up_the_batch) {
  tick_fleet three{{1, 1, 1}, 3};
  tick_fleet without{{1, 1, 1, 10}, 0};
  tick_fleet with{{1, 1, 1, 10}, 3};
  const auto alone = three.run();
  const auto before = without.run();
  const auto after = with.run();
  RecordProperty("makespan_ms_of_three", static_cast<int>(alone));
  RecordProperty("makespan_ms_before", static_cast<int>(before));
  RecordProperty("makespan_ms_after", static_cast<int>(after));
  std::printf("three fast: %zu ms; and a slow one: %zu ms without the rule, %zu ms with it\n",
              alone, before, after);
  EXPECT_LT(after * 10, before * 7) << "the tail is not cut";
  EXPECT_LT(after * 10, alone * 11) << "the slow one does harm";
  EXPECT_GT(with.cuts(), 0u);
  EXPECT_EQ(three.cuts(), 0u);
}

} // namespace
} // namespace rollcast::policy
