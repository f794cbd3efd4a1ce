// Goal: whoever dies or comes when, and however late messages are, every move of KV and every cast
// of weights that a worker asks for ends once (by the group, or failed, so that ZeroMQ does it),
// with the right bytes, within a bounded time; no memory is let go while the fabric uses it; no
// two members share a device; after the faults a group forms again and moves what it is asked to.
// Method: many seeds; the real coordinator and the real members over a pretended fabric, messages
// of a connection late but in order, lost with it. Faults for a while (safety), then none
// (liveness). A failure prints its seed; `ROLLCAST_TEST_SEED=<n>` replays that run alone.

#include "tests/sim/collective_sim.hpp"
#include "tests/sim/each_seed.hpp"

#include <gtest/gtest.h>

namespace rollcast::collective::sim {
namespace {

void run(collective_sim& sim, int ticks) {
  for (int tick = 0; tick < ticks; ++tick)
    ASSERT_EQ(sim.step(), "");
  sim.calm();
  const auto before = sim.moved();
  // Long, because few are asked for where most workers have died.
  for (int tick = 0; tick < 10'000 && (sim.moved() < before + 5 || !sim.settled()); ++tick)
    ASSERT_EQ(sim.step(), "");
  EXPECT_GE(sim.moved(), before + 5) << "nothing moves on a calm fabric";
  sim.stop_asking();
  for (int tick = 0; tick < 1'000 && !sim.settled(); ++tick)
    ASSERT_EQ(sim.step(), "");
  EXPECT_TRUE(sim.settled());
}

TEST(collective_sim, a_calm_group_moves_everything_and_never_fails) {
  each_seed(100, [](std::uint64_t seed) {
    collective_sim sim{seed, 2 + static_cast<std::uint32_t>(seed % 6), {}};
    for (int tick = 0; tick < 600; ++tick)
      ASSERT_EQ(sim.step(), "");
    EXPECT_EQ(sim.counts().failures, 0u);
    EXPECT_LE(sim.counts().epochs, 1u) << "none, if all share a device";
    EXPECT_GE(sim.moved(), sim.counts().epochs);
    EXPECT_EQ(sim.fell_back(), 0u);
  });
}

TEST(collective_sim, whatever_is_asked_for_ends_once_under_every_fault) {
  std::uint64_t failures = 0, moved = 0, cast = 0, fell_back = 0;
  each_seed(300, [&](std::uint64_t seed) {
    collective_sim sim{seed,
                       2 + static_cast<std::uint32_t>(seed % 6),
                       {.kill = 8,
                        .relink = 8,
                        .join = 12,
                        .stall = 6,
                        .refuse = 6,
                        .no_give = 50,
                        .corrupt = 20,
                        .delay_ticks_max = 1 + static_cast<std::uint32_t>(seed % 8)}};
    run(sim, 800);
    failures += sim.counts().failures;
    moved += sim.moved();
    cast += sim.cast();
    fell_back += sim.fell_back();
  });
  EXPECT_GT(failures, 100u) << "the faults that this is about do not happen";
  EXPECT_GT(moved, 1'000u);
  EXPECT_GT(cast, 100u);
  EXPECT_GT(fell_back, 500u);
}

TEST(collective_sim, a_rank_that_dies_inside_a_round_without_a_word) {
  each_seed(200, [](std::uint64_t seed) {
    collective_sim sim{seed, 5, {.kill = 4, .join = 10, .delay_ticks_max = 2}};
    run(sim, 600);
  });
}

} // namespace
} // namespace rollcast::collective::sim
