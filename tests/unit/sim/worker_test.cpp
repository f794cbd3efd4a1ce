// Goal: a worker that takes whole spans of steps does exactly what one that takes every step does.
// Method: random jobs, reserved and growing, arrive at random times at `sim_worker` and at a naive
// worker below that walks step by step and counts blocks one by one; ends, times, preemptions and
// totals are compared, without drafts and with. What a span's pace stands for, steps drawn one by
// one, is compared by mean and deviation. Plus small cases whose times are known by hand.

#include "cluster/sim/sim_worker.hpp"
#include "engine/base/prng.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
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
  bool fresh = true;  ///< It has not generated since it last joined.
  double carried = 0; ///< Tokens made beyond `size`, below 1.
  double pace = 1;
};

bool by_arrival(const seq& a, const seq& b) {
  return a.arrival < b.arrival;
}

/// Tokens a step of drafts of 8 from a response's own text, in 2^-20 as the worker counts them.
double pace_of(const drafting& drafts, const seq& s) {
  const auto p = drafts.pace(drafts.luck(s.job.response, s.size), s.left, 0, 8);
  return std::round(p * 0x1p20) * 0x1p-20;
}

/// Takes one step: everybody grows by what he makes. Adds what must be computed first to `prefill`.
double one_step(const cost_model& m, std::vector<seq>& running, bool drafting, double& prefill,
                worker_totals& totals) {
  double seconds = m.step_fixed_s + m.step_row_s * static_cast<double>(running.size());
  if (drafting)
    seconds += m.draft_step_s + m.draft_row_s * 8 * static_cast<double>(running.size());
  for (auto& s : running) {
    seconds += m.step_kv_token_s * (static_cast<double>(s.size) + s.carried);
    if (s.fresh)
      prefill += static_cast<double>(s.job.prefill);
    s.fresh = false;
    s.carried += s.pace;
    const auto made = std::min(s.left, static_cast<std::uint32_t>(s.carried));
    s.carried -= made;
    s.size += made;
    s.left -= made;
    totals.generated_tokens += made;
    if (drafting) {
      totals.draft_tokens += 8;
      totals.accepted_tokens += made - 1;
      ++totals.verifications;
    }
  }
  return seconds;
}

/// What engine/step does, one step at a time. With `drafts`, each makes its pace of tokens a step.
outcome step_by_step(const cost_model& m, const std::vector<timed_job>& jobs,
                     const drafting* drafts = nullptr) {
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
      s.pace = drafts != nullptr ? pace_of(*drafts, s) : 1;
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
    const double seconds = one_step(m, running, drafts != nullptr, prefill, out.totals);
    now += seconds + prefill * m.prefill_token_s;
    out.totals.busy_s += seconds + prefill * m.prefill_token_s;
    ++out.totals.steps;
    for (const auto& s : running)
      if (s.left == 0)
        out.ends.push_back({now, s.job.response});
    std::erase_if(running, [](const seq& s) { return s.left == 0; });
  }
}

outcome in_spans(const cost_model& m, const std::vector<timed_job>& jobs,
                 drafting* drafts = nullptr) {
  sim_worker sut{m, drafts};
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

void expect_equal(const outcome& fast, const outcome& slow, std::uint64_t seed) {
  ASSERT_EQ(fast.ends.size(), slow.ends.size()) << "seed " << seed;
  for (std::size_t i = 0; i < slow.ends.size(); ++i) {
    ASSERT_EQ(fast.ends[i].response, slow.ends[i].response) << "seed " << seed;
    ASSERT_NEAR(fast.ends[i].at, slow.ends[i].at, 1e-6) << "seed " << seed;
  }
  ASSERT_EQ(fast.totals.preemptions, slow.totals.preemptions) << "seed " << seed;
  ASSERT_EQ(fast.totals.recomputed_tokens, slow.totals.recomputed_tokens) << "seed " << seed;
  ASSERT_EQ(fast.totals.generated_tokens, slow.totals.generated_tokens) << "seed " << seed;
  ASSERT_EQ(fast.totals.steps, slow.totals.steps) << "seed " << seed;
  ASSERT_EQ(fast.totals.draft_tokens, slow.totals.draft_tokens) << "seed " << seed;
  ASSERT_EQ(fast.totals.accepted_tokens, slow.totals.accepted_tokens) << "seed " << seed;
  ASSERT_EQ(fast.totals.verifications, slow.totals.verifications) << "seed " << seed;
  ASSERT_NEAR(fast.totals.busy_s, slow.totals.busy_s, 1e-6) << "seed " << seed;
}

TEST(sim_worker, does_in_spans_what_it_would_do_step_by_step) {
  std::uint64_t preempted = 0;
  for (std::uint64_t seed = 1; seed <= 200; ++seed) {
    const auto jobs = random_jobs(seed, seed % 3 == 0);
    const auto m = small_model(seed % 2 == 0 ? 24 : 40);
    const auto slow = step_by_step(m, jobs);
    ASSERT_EQ(slow.ends.size(), jobs.size()) << "seed " << seed;
    const auto fast = in_spans(m, jobs);
    expect_equal(fast, slow, seed);
    preempted += fast.totals.preemptions;
  }
  EXPECT_GT(preempted, 100u); // or the comparison says nothing about preemption
}

TEST(sim_worker, does_in_spans_what_it_would_do_step_by_step_with_drafts) {
  workload batch{"30 alone", 100, {}};
  for (std::uint32_t i = 0; i < 30; ++i)
    batch.responses.push_back({i, 0, 1, 100});
  std::uint64_t preempted = 0;
  for (std::uint64_t seed = 1; seed <= 200; ++seed) {
    drafting drafts{batch, speculation::self, seed};
    const auto jobs = random_jobs(seed, seed % 3 == 0);
    auto m = small_model(seed % 2 == 0 ? 24 : 40);
    m.draft_step_s = 0.125;
    m.draft_row_s = 0.03125;
    const auto slow = step_by_step(m, jobs, &drafts);
    const auto fast = in_spans(m, jobs, &drafts);
    ASSERT_EQ(slow.ends.size(), jobs.size()) << "seed " << seed;
    expect_equal(fast, slow, seed);
    preempted += fast.totals.preemptions;
  }
  EXPECT_GT(preempted, 50u);
}

TEST(sim_worker, ends_chunks_when_steps_drawn_one_by_one_would) {
  // A chunk of 512 tokens in drafts of 8: mean and deviation of its steps, over 2000 chunks.
  constexpr std::uint32_t count = 2000, tokens = 512;
  workload batch{"alone", tokens, {}};
  for (std::uint32_t i = 0; i < count; ++i)
    batch.responses.push_back({i, 0, 1, tokens});
  drafting drafts{batch, speculation::self, 7};
  const double chance = chance_of_length(1.70, 8);
  prng random{11};
  double drawn = 0, drawn_squares = 0, taken = 0, taken_squares = 0;
  for (std::uint32_t i = 0; i < count; ++i) {
    double steps = 0;
    for (std::uint32_t made = 0; made < tokens; ++steps) {
      ++made;
      for (int k = 0; k < 8 && static_cast<double>(random.next() >> 11) * 0x1p-53 < chance; ++k)
        ++made;
    }
    drawn += steps / count;
    drawn_squares += steps * steps / count;
    const auto out = in_spans(small_model(1000), {{0, {i, 1, 1, tokens, 0, 0}}}, &drafts);
    taken += static_cast<double>(out.totals.steps) / count;
    taken_squares += static_cast<double>(out.totals.steps * out.totals.steps) / count;
  }
  EXPECT_NEAR(taken / drawn, 1, 0.005);
  const double deviation = std::sqrt(drawn_squares - drawn * drawn);
  EXPECT_GT(deviation, 5);
  EXPECT_NEAR(std::sqrt(taken_squares - taken * taken) / deviation, 1, 0.1);
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
