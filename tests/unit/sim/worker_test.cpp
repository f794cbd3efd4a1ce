// Goal: a worker that takes whole spans of steps does exactly what one that takes every step does.
// Method: random jobs, reserved and growing, arrive at random times at `sim_worker` and at a naive
// worker below that walks step by step and counts blocks one by one; ends, times, preemptions and
// totals are compared. Plus small cases whose times are known by hand.

#include "cluster/sim/sim_worker.hpp"
#include "engine/base/prng.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <vector>

namespace rollcast::sim {
namespace {

cost_model small_model(std::uint32_t kv_blocks) {
  cost_model m;
  m.name = "small";
  m.kv_blocks = kv_blocks;
  m.block_tokens = 4;
  m.batch_max = 6;
  m.step_fixed_s = 1;
  m.step_row_s = 0.25;
  m.step_kv_token_s = 0.001;
  m.prefill_token_s = 0.01;
  return m;
}

struct timed_job {
  double at = 0;
  chunk_job job;
};
struct timed_end {
  double at = 0;
  std::uint32_t response = 0;
};
struct outcome {
  std::vector<timed_end> ends;
  worker_totals totals;
};

/// One response in the naive worker.
struct seq {
  chunk_job job;
  std::size_t arrival = 0;
  std::uint32_t left = 0;
  std::uint64_t size = 0;
  bool fresh = true; ///< It has not generated since it last joined.
};

bool by_arrival(const seq& a, const seq& b) {
  return a.arrival < b.arrival;
}

/// What engine/step does, one step at a time.
outcome step_by_step(const cost_model& m, const std::vector<timed_job>& jobs) {
  std::vector<seq> running, waiting;
  outcome out;
  double now = 0;
  std::size_t next = 0;
  const auto need = [&](const seq& s) {
    return s.job.reserved_blocks > 0 ? s.job.reserved_blocks
                                     : (s.size + m.block_tokens - 1) / m.block_tokens;
  };
  const auto held = [&] {
    std::uint64_t sum = 0;
    for (const auto& s : running)
      sum += need(s);
    return sum;
  };
  for (;;) {
    if (running.empty() && waiting.empty()) {
      if (next == jobs.size())
        return out;
      now = std::max(now, jobs[next].at);
    }
    for (; next < jobs.size() && jobs[next].at <= now; ++next)
      waiting.push_back({jobs[next].job, next, jobs[next].job.tokens_now, jobs[next].job.context});
    std::stable_sort(waiting.begin(), waiting.end(), by_arrival);
    double prefill = 0;
    while (!waiting.empty() && running.size() < m.batch_max
           && held() + need(waiting.front()) <= m.kv_blocks) {
      auto s = waiting.front();
      waiting.erase(waiting.begin());
      s.fresh = true;
      running.push_back(s);
    }
    std::stable_sort(running.begin(), running.end(), by_arrival);
    while (held() > m.kv_blocks) {
      const auto last = std::find_if(running.rbegin(), running.rend(),
                                     [](const seq& s) { return s.job.reserved_blocks == 0; });
      auto s = *last;
      running.erase(std::next(last).base());
      if (!s.fresh) {
        s.job.prefill = s.size;
        out.totals.recomputed_tokens += s.size;
      }
      ++out.totals.preemptions;
      waiting.push_back(s);
      std::stable_sort(waiting.begin(), waiting.end(), by_arrival);
    }
    double seconds = m.step_fixed_s + m.step_row_s * static_cast<double>(running.size());
    for (auto& s : running) {
      seconds += m.step_kv_token_s * static_cast<double>(s.size);
      if (s.fresh)
        prefill += static_cast<double>(s.job.prefill);
      s.fresh = false;
      ++s.size;
      --s.left;
      ++out.totals.generated_tokens;
    }
    now += seconds + prefill * m.prefill_token_s;
    out.totals.busy_s += seconds + prefill * m.prefill_token_s;
    ++out.totals.steps;
    for (const auto& s : running)
      if (s.left == 0)
        out.ends.push_back({now, s.job.response});
    std::erase_if(running, [](const seq& s) { return s.left == 0; });
  }
}

outcome in_spans(const cost_model& m, const std::vector<timed_job>& jobs) {
  sim_worker sut{m};
  outcome out;
  std::vector<ended_chunk> ended;
  std::size_t next = 0;
  while (next < jobs.size() || sut.wakes_at() != sim_worker::never) {
    if (next < jobs.size() && jobs[next].at <= sut.wakes_at()) {
      sut.arrive(jobs[next].at, jobs[next].job);
      ++next;
      continue;
    }
    const double at = sut.wakes_at();
    ended.clear();
    sut.wake(ended);
    EXPECT_LE(sut.blocks_held(), m.kv_blocks);
    for (const auto& e : ended)
      out.ends.push_back({at, e.response});
  }
  out.totals = sut.totals();
  return out;
}

std::vector<timed_job> random_jobs(std::uint64_t seed, bool reserve) {
  prng random{seed};
  std::vector<timed_job> jobs;
  double at = 0;
  for (std::uint32_t i = 0; i < 30; ++i) {
    if (random.chance(60))
      at += static_cast<double>(random.below(60)) + 0.3700137; // steps end at whole thousandths
    chunk_job job;
    job.response = i;
    job.context = 1 + random.below(20);
    job.tokens_now = 1 + static_cast<std::uint32_t>(random.below(40));
    job.prefill = random.chance(50) ? job.context : 0;
    if (reserve)
      job.reserved_blocks = static_cast<std::uint32_t>(job.context + job.tokens_now + 3) / 4;
    jobs.push_back({at, job});
  }
  return jobs;
}

TEST(sim_worker, does_in_spans_what_it_would_do_step_by_step) {
  std::uint64_t preempted = 0;
  for (std::uint64_t seed = 1; seed <= 200; ++seed) {
    const auto jobs = random_jobs(seed, seed % 3 == 0);
    const auto m = small_model(seed % 2 == 0 ? 24 : 40);
    const auto slow = step_by_step(m, jobs);
    const auto fast = in_spans(m, jobs);
    ASSERT_EQ(slow.ends.size(), jobs.size()) << "seed " << seed;
    ASSERT_EQ(fast.ends.size(), jobs.size()) << "seed " << seed;
    for (std::size_t i = 0; i < jobs.size(); ++i) {
      ASSERT_EQ(fast.ends[i].response, slow.ends[i].response) << "seed " << seed;
      ASSERT_NEAR(fast.ends[i].at, slow.ends[i].at, 1e-6) << "seed " << seed;
    }
    ASSERT_EQ(fast.totals.preemptions, slow.totals.preemptions) << "seed " << seed;
    ASSERT_EQ(fast.totals.recomputed_tokens, slow.totals.recomputed_tokens) << "seed " << seed;
    ASSERT_EQ(fast.totals.generated_tokens, slow.totals.generated_tokens) << "seed " << seed;
    ASSERT_EQ(fast.totals.steps, slow.totals.steps) << "seed " << seed;
    ASSERT_NEAR(fast.totals.busy_s, slow.totals.busy_s, 1e-6) << "seed " << seed;
    preempted += fast.totals.preemptions;
  }
  EXPECT_GT(preempted, 100u); // or the comparison says nothing about preemption
}

TEST(sim_worker, takes_the_time_of_the_cost_model) {
  sim_worker sut{small_model(100)};
  sut.arrive(5, {0, 1, 10, 3, 10, 0});
  std::vector<ended_chunk> ended;
  while (sut.wakes_at() != sim_worker::never)
    sut.wake(ended);
  ASSERT_EQ(ended.size(), 1u);
  // Three steps of one row over 10, 11 and 12 cached tokens, and a prompt of 10.
  EXPECT_NEAR(sut.totals().busy_s, 3 * 1.25 + 0.033 + 0.1, 1e-9);
}

TEST(sim_worker, preempts_only_when_blocks_run_out) {
  for (const std::uint32_t blocks : {16u, 400u}) {
    const auto out = in_spans(small_model(blocks), random_jobs(7, false));
    EXPECT_EQ(out.totals.preemptions > 0, blocks == 16) << blocks;
  }
}

} // namespace
} // namespace rollcast::sim
