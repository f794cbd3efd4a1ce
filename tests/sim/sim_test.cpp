// Goal: whatever network and workers do, no worker is over-filled, no response is lost, held twice
// or finished twice, no KV is let go before its move is confirmed; and when they behave, all ends.
// Method: many seeds; the real policy against pretend workers that keep the protocol to the letter;
// faults for a while (safety), then none (liveness). The checkers are functions of what was told
// and decided (ledger.hpp) and of what workers really hold (pretend_worker.hpp), never of the
// policy's own books. A failure prints its seed; `ROLLCAST_TEST_SEED=<n>` replays that run alone.

#include "tests/sim/cluster_sim.hpp"
#include "tests/sim/each_seed.hpp"

#include <gtest/gtest.h>

#include <cstdlib>

namespace rollcast::sim {
namespace {

constexpr std::uint64_t seeds_of_every_fault = 1000;
constexpr int faulty_ticks = 150;
constexpr int calm_ticks_max =
  40'000; // the slowest run: one worker, 200 responses, chunks of 5 tokens

/// Draws the knobs of a run, so that every rule of the policy is somewhere at its edge.
workload draw_load(prng& rng) {
  constexpr std::uint32_t chunks[] = {0, 5, 32, 100};
  workload load;
  load.limits.rules.chunk_tokens = chunks[rng.below(4)];
  load.limits.rules.force_migration = rng.chance(20);
  load.limits.reserve_tokens = chunks[rng.below(4)];
  load.limits.fair_every = static_cast<std::uint32_t>(rng.below(6));
  load.limits.home_spread = static_cast<std::uint32_t>(rng.below(3));
  load.limits.resident_bonus_tokens = rng.chance(50) ? 0 : 64;
  load.limits.pass_over_max = static_cast<std::uint32_t>(rng.below(4));
  load.limits.overtakes_max = static_cast<std::uint32_t>(rng.below(20));
  load.limits.decisions_per_plan = rng.chance(30) ? 2 : 64;
  load.limits.outlook = static_cast<std::uint32_t>(rng.below(5));
  load.groups = 2 + static_cast<std::uint32_t>(rng.below(16));
  load.group_size = 1 + static_cast<std::uint32_t>(rng.below(12));
  load.workers = 1 + static_cast<std::uint32_t>(rng.below(5));
  return load;
}

void run(cluster_sim& sim) {
  for (int tick = 0; tick < faulty_ticks; ++tick)
    ASSERT_EQ(sim.step(), "") << "unsafe at tick " << tick;
  sim.calm();
  for (int tick = 0; tick < calm_ticks_max && !sim.all_ended(); ++tick)
    ASSERT_EQ(sim.step(), "") << "unsafe at calm tick " << tick;
  EXPECT_TRUE(sim.all_ended()) << "no progress on a calm network: " << sim.policy().waiting()
                               << " wait, " << sim.policy().running() << " run";
}

constexpr fault_plan every_fault{.delay_ticks_max = 6,
                                 .replay = 150,
                                 .message_lost = 5,
                                 .crash = 4,
                                 .false_loss = 6,
                                 .drain = 3,
                                 .kv_lost = 20,
                                 .kv_dropped = 50,
                                 .chunk_failed = 30,
                                 .pull_failed = 100,
                                 .spill_failed = 100,
                                 .priced = 20,
                                 .paced = 200,
                                 .cancel = 30};

TEST(cluster_sim, every_response_finishes_on_a_calm_network) {
  each_seed(150, [](std::uint64_t seed) {
    prng rng{seed};
    const auto load = draw_load(rng);
    cluster_sim sim{rng.next(), load, {}};
    run(sim);
    EXPECT_EQ(sim.finished(), load.groups * load.group_size) << "nobody cancelled any";
  });
}

TEST(cluster_sim, nothing_is_lost_doubled_or_overfilled_under_every_fault) {
  each_seed(seeds_of_every_fault, [](std::uint64_t seed) {
    prng rng{seed};
    const auto load = draw_load(rng);
    cluster_sim sim{rng.next(), load, every_fault};
    run(sim);
  });
}

TEST(cluster_sim, groups_bound_to_workers_survive_every_fault) {
  each_seed(100, [](std::uint64_t seed) {
    prng rng{seed};
    auto load = draw_load(rng);
    load.static_percent = seed % 2 == 0 ? 100 : 50;
    cluster_sim sim{rng.next(), load, every_fault};
    run(sim);
  });
}

TEST(cluster_sim, the_faults_and_the_rules_do_happen) {
  policy::policy_counters sum;
  each_seed(200, [&sum](std::uint64_t seed) {
    prng rng{seed};
    const auto load = draw_load(rng);
    cluster_sim sim{rng.next(), load, every_fault};
    run(sim);
    const auto& c = sim.policy().counters();
    sum.migrations += c.migrations;
    sum.recomputes += c.recomputes;
    sum.resumes += c.resumes;
    sum.evictions += c.evictions;
    sum.spills += c.spills;
    sum.restores += c.restores;
    sum.fair_turns += c.fair_turns;
    sum.resident_turns += c.resident_turns;
    sum.cuts += c.cuts;
    sum.failed_chunks += c.failed_chunks;
    sum.stale_events += c.stale_events;
  });
  if (std::getenv("ROLLCAST_TEST_SEED"))
    GTEST_SKIP() << "sums are over all seeds";
  EXPECT_GT(sum.migrations, 100u);
  EXPECT_GT(sum.recomputes, 100u);
  EXPECT_GT(sum.resumes, 100u);
  EXPECT_GT(sum.evictions, 100u);
  EXPECT_GT(sum.spills, 50u);
  EXPECT_GT(sum.restores, 25u);
  EXPECT_GT(sum.fair_turns, 100u);
  EXPECT_GT(sum.resident_turns, 10u);
  EXPECT_GT(sum.cuts, 100u);
  EXPECT_GT(sum.failed_chunks, 100u);
  EXPECT_GT(sum.stale_events, 1000u);
}

TEST(cluster_sim, the_same_seed_decides_the_same) {
  each_seed(10, [](std::uint64_t seed) {
    std::uint64_t traces[2];
    for (auto& trace : traces) {
      prng rng{seed};
      const auto load = draw_load(rng);
      cluster_sim sim{rng.next(), load, every_fault};
      run(sim);
      trace = sim.trace();
    }
    EXPECT_EQ(traces[0], traces[1]);
  });
}

} // namespace
} // namespace rollcast::sim
