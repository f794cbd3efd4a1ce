// Goal: a simulated batch is complete, repeatable and obeys memory, under every policy; the worth
// of scarce memory shows.
// Method: small drawn batches against a small cost model; the whole published workloads, for their
// published baseline.

#include "cluster/sim/report.hpp"
#include "cluster/sim/simulation.hpp"

#include <gtest/gtest.h>

#include <numeric>

namespace rollcast::sim {
namespace {

using policy::mode;
constexpr std::array<mode, 4> every_mode{mode::static_, mode::divided, mode::context, mode::oracle};

workload small_batch(std::uint64_t seed = 1) {
  return draw_workload({"small", 20, 4, 2000, 400, 1.0, 0.648, 40}, seed);
}

cost_model small_model(std::uint32_t kv_blocks) {
  auto m = *find_cost_model("cpu");
  m.workers = 3;
  m.kv_blocks = kv_blocks;
  return m;
}

sim_options options_of(mode how) {
  sim_options o;
  o.rules.how = how;
  o.rules.chunk_tokens = 128;
  return o;
}

TEST(simulation, generates_every_token_once_under_every_policy) {
  for (const auto how : every_mode)
    for (const std::uint32_t blocks : {160u, 600u, 100'000u})
      for (std::uint64_t seed = 1; seed <= 5; ++seed) {
        const auto batch = small_batch(seed);
        const auto run = simulate(batch, small_model(blocks), options_of(how));
        ASSERT_TRUE(run.has_value()) << run.error().detail;
        std::uint64_t tokens = 0;
        for (const auto& r : batch.responses)
          tokens += r.output_tokens;
        EXPECT_EQ(run->generated_tokens, tokens) << static_cast<int>(how) << " " << blocks;
        EXPECT_LE(run->busy_kv_fraction, 1.0);
        EXPECT_GE(run->idle_fraction, 0);
        EXPECT_LT(run->tail_s, run->makespan_s);
        for (const auto& r : run->responses)
          EXPECT_GT(r.ended_s, r.started_s);
      }
}

TEST(simulation, gives_the_same_json_for_the_same_seed) {
  for (const auto how : every_mode) {
    const auto once = simulate(small_batch(), small_model(300), options_of(how));
    const auto again = simulate(small_batch(), small_model(300), options_of(how));
    EXPECT_EQ(figures_of(small_batch(), *once).dump(), figures_of(small_batch(), *again).dump());
  }
}

TEST(simulation, preempts_in_mode_static_when_memory_is_scarce_and_not_when_plentiful) {
  const auto scarce = simulate(small_batch(), small_model(160), options_of(mode::static_));
  const auto plenty = simulate(small_batch(), small_model(100'000), options_of(mode::static_));
  EXPECT_GT(scarce->preemptions, 0u);
  EXPECT_GT(scarce->recomputed_tokens, 0u);
  EXPECT_EQ(plenty->preemptions, 0u);
  EXPECT_EQ(plenty->recomputed_tokens, 0u);
  EXPECT_GT(scarce->makespan_s, plenty->makespan_s);
}

TEST(simulation, spilled_kv_is_brought_back_and_not_computed_again) {
  auto model = small_model(160);
  const auto without = simulate(small_batch(), model, options_of(mode::context));
  EXPECT_EQ(without->spills, 0u);
  EXPECT_GT(without->recomputed_tokens, 0u);
  model.spill_tokens = 1'000'000;
  const auto with = simulate(small_batch(), model, options_of(mode::context));
  EXPECT_GT(with->spills, 0u);
  EXPECT_EQ(with->spills, with->evictions);
  EXPECT_LT(with->recomputed_tokens, without->recomputed_tokens / 4);
  model.spill_bytes_per_s = 2.5e7; // a copy costs nearly what computing again does
  const auto slow = simulate(small_batch(), model, options_of(mode::context));
  EXPECT_GT(slow->makespan_s, with->makespan_s);
  model.spill_bytes_per_s = 1e6; // dearer than computing again: never used
  EXPECT_EQ(simulate(small_batch(), model, options_of(mode::context))->spills, 0u);
}

TEST(simulation, never_preempts_where_the_policy_reserves) {
  for (const auto how : {mode::divided, mode::context, mode::oracle})
    EXPECT_EQ(simulate(small_batch(), small_model(160), options_of(how))->preemptions, 0u);
}

TEST(simulation, counts_what_it_moves) {
  auto o = options_of(mode::context);
  o.rules.force_migration = true;
  const auto run = simulate(small_batch(), small_model(1000), o);
  EXPECT_GT(run->migrations, 100u);
  EXPECT_GT(run->migrated_bytes, run->migrations * 128 * small_model(1).kv_bytes_per_token / 2);
  EXPECT_EQ(simulate(small_batch(), small_model(1000), options_of(mode::static_))->migrations, 0u);
}

TEST(simulation, groups_told_their_longest_member_about_reach_the_oracle) {
  // 96 to 98 % at the writing of this; without being told 86 %.
  const auto batch = draw_workload(*find_workload("moonlight"), 1);
  const auto model = *find_cost_model("moonlight");
  auto o = options_of(mode::context);
  o.rules.chunk_tokens = 2048;
  const auto untold = simulate(batch, model, o);
  o.oracle_groups = true;
  const auto told = simulate(batch, model, o);
  o.oracle_groups = false;
  o.rules.how = mode::oracle;
  const auto oracle = simulate(batch, model, o);
  EXPECT_LT(told->makespan_s, untold->makespan_s * 0.92);
  EXPECT_LT(told->makespan_s, oracle->makespan_s * 1.05);
}

TEST(simulation, costs_more_where_links_are_slow) {
  auto o = options_of(mode::divided);
  o.rules.force_migration = true;
  auto slow = small_model(1000);
  slow.migration_bytes_per_s = 1e6;
  EXPECT_GT(simulate(small_batch(), slow, o)->makespan_s,
            simulate(small_batch(), small_model(1000), o)->makespan_s);
}

TEST(simulation, records_who_ran_when) {
  auto o = options_of(mode::context);
  o.timeline = true;
  const auto run = simulate(small_batch(), small_model(600), o);
  ASSERT_EQ(run->timeline.size(), 3u);
  for (const auto& line : run->timeline) {
    ASSERT_FALSE(line.empty());
    EXPECT_EQ(line.back().running, 0u);
    for (std::size_t i = 1; i < line.size(); ++i)
      EXPECT_LE(line[i - 1].at_s, line[i].at_s);
  }
}

sim_options drafting_options(mode how, speculation speculate) {
  auto o = options_of(how);
  o.speculate = speculate;
  return o;
}

TEST(simulation, generates_every_token_once_with_drafts_too) {
  for (const auto how : every_mode)
    for (const auto speculate : {speculation::self, speculation::group, speculation::auto_})
      for (const std::uint32_t blocks : {160u, 600u}) {
        const auto batch = small_batch();
        const auto run = simulate(batch, small_model(blocks), drafting_options(how, speculate));
        ASSERT_TRUE(run.has_value()) << run.error().detail;
        std::uint64_t tokens = 0;
        for (const auto& r : batch.responses)
          tokens += r.output_tokens;
        EXPECT_EQ(run->generated_tokens, tokens);
        EXPECT_LE(run->busy_kv_fraction, 1.0);
        EXPECT_GT(run->accepted_tokens, 0u);
        EXPECT_LT(run->accepted_tokens, std::min(tokens, run->draft_tokens));
        const auto again = simulate(batch, small_model(blocks), drafting_options(how, speculate));
        EXPECT_EQ(figures_of(batch, *run).dump(), figures_of(batch, *again).dump());
      }
}

TEST(simulation, a_budget_of_zero_is_no_speculation_to_the_last_digit) {
  auto dear = small_model(300);
  dear.draft_row_s = 10;
  for (const auto how : every_mode) {
    const auto off = simulate(small_batch(), dear, options_of(how));
    EXPECT_EQ(off->draft_tokens, 0u);
    EXPECT_EQ(off->mean_acceptance_length, 0);
    const auto zero = simulate(small_batch(), dear, drafting_options(how, speculation::auto_));
    EXPECT_EQ(figures_of(small_batch(), *zero).dump(), figures_of(small_batch(), *off).dump());
  }
}

TEST(simulation, accepts_as_published_by_the_number_of_complete_siblings) {
  // One worker, one response at a time: member k has k complete siblings of its own length.
  workload batch{"one by one", 4000, {}};
  for (std::uint32_t i = 0; i < 16; ++i)
    batch.responses.push_back({1, i, 40, 4000});
  auto model = small_model(1000);
  model.workers = 1;
  model.batch_max = 1;
  double steps = 0;
  for (int k = 0; k < 16; ++k)
    steps += 1 / published_acceptance_length(k) / 16;
  for (const auto how : {mode::static_, mode::divided}) {
    auto o = drafting_options(how, speculation::group);
    o.rules.chunk_tokens = 4000; // or members take turns
    EXPECT_NEAR(simulate(batch, model, o)->mean_acceptance_length * steps, 1, 0.01);
    o.speculate = speculation::self;
    EXPECT_NEAR(simulate(batch, model, o)->mean_acceptance_length / 1.70, 1, 0.01);
  }
}

TEST(simulation, auto_is_never_slower_than_off_and_group_never_than_self) {
  // Who meets whom on a worker changes with every change of speed, hence the 2 %.
  const auto compare = [](const workload& batch, const cost_model& model, sim_options o) {
    const auto seconds = [&](speculation speculate) {
      o.speculate = speculate;
      return simulate(batch, model, o)->makespan_s;
    };
    EXPECT_LT(seconds(speculation::auto_), seconds(speculation::off) * 1.02);
    EXPECT_LT(seconds(speculation::group), seconds(speculation::self) * 1.02);
  };
  for (const auto how : every_mode)
    for (const double row : {0.0, 0.0015, 0.005, 0.02})
      for (std::uint64_t seed = 1; seed <= 3; ++seed) {
        SCOPED_TRACE(std::to_string(static_cast<int>(how)) + " " + std::to_string(row) + " seed "
                     + std::to_string(seed));
        auto model = small_model(600);
        model.draft_row_s = row;
        compare(small_batch(seed), model, options_of(how));
      }
  auto o = options_of(mode::context);
  o.rules.chunk_tokens = 1024;
  compare(draw_workload(*find_workload("moonlight"), 1), *find_cost_model("moonlight"), o);
}

TEST(simulation, gains_from_groups_about_what_was_published_with_plain_scheduling) {
  // Seer, Figure 11: gain and acceptance length over no speculation, scheduled as `static`. Only
  // the price of a verifying step was fitted, and to none of these (cluster/sim/README.md).
  struct point {
    const char* name;
    double gain, gain_tolerance, length;
  };
  for (const auto& wanted : {point{"moonlight", 1.26, 0.15, 1.89},
                             {"qwen2-vl-72b", 1.38, 0.08, 2.15},
                             {"kimi-k2", 1.25, 0.08, 1.77}}) {
    double gain = 0, length = 0;
    for (std::uint64_t seed = 1; seed <= 2; ++seed) {
      const auto batch = draw_workload(*find_workload(wanted.name), seed);
      const auto model = *find_cost_model(wanted.name);
      const auto off = simulate(batch, model, options_of(mode::static_));
      const auto on = simulate(batch, model, drafting_options(mode::static_, speculation::auto_));
      gain += off->makespan_s / on->makespan_s / 2;
      length += on->mean_acceptance_length / 2;
    }
    EXPECT_NEAR(gain, wanted.gain, wanted.gain_tolerance) << wanted.name;
    EXPECT_NEAR(length, wanted.length, 0.2) << wanted.name;
  }
}

struct published_baseline {
  const char* name;
  double makespan_s;
  double tail_share;
};

TEST(simulation, static_reproduces_the_published_baseline) {
  // Seer, arXiv 2511.14617v3, Figures 3 and 8. Seeds differ by who shares a worker, so the mean of
  // five counts.
  for (const auto& wanted : {published_baseline{"moonlight", 3910, 0.46},
                             {"qwen2-vl-72b", 3957, 0.58},
                             {"kimi-k2", 12202, 0.26}}) {
    double makespan = 0, tail_share = 0, idle = 0, preemptions = 0;
    for (std::uint64_t seed = 1; seed <= 5; ++seed) {
      const auto run = simulate(draw_workload(*find_workload(wanted.name), seed),
                                *find_cost_model(wanted.name), options_of(mode::static_));
      makespan += run->makespan_s / 5;
      tail_share += run->tail_s / run->makespan_s / 5;
      idle += run->idle_fraction / 5;
      preemptions += static_cast<double>(run->preemptions) / 5;
    }
    EXPECT_NEAR(makespan / wanted.makespan_s, 1, 0.05) << wanted.name;
    EXPECT_NEAR(tail_share, wanted.tail_share, 0.05) << wanted.name;
    EXPECT_GT(preemptions, 1000) << wanted.name; // the gain is against a baseline under pressure
    if (wanted.tail_share == 0.58) {
      EXPECT_NEAR(idle, 0.37, 0.08);
      EXPECT_NEAR(preemptions / 13'686, 1, 0.3);
    }
  }
}

TEST(simulation, refuses_what_cannot_run) {
  const auto large = simulate(small_batch(), small_model(20), options_of(mode::context));
  ASSERT_FALSE(large.has_value());
  EXPECT_EQ(large.error().code, errc::bad_config);
  EXPECT_NE(large.error().detail.find("raise --kv-blocks"), std::string::npos);
  EXPECT_FALSE(simulate({}, small_model(600), options_of(mode::context)).has_value());
}

} // namespace
} // namespace rollcast::sim
