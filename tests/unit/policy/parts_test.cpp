// Goal: the small parts keep what their comments say.
// Method: edges by hand, and a slow twin under seeded random changes.

#include "cluster/policy/cost.hpp"
#include "cluster/policy/id_ranges.hpp"
#include "cluster/policy/load_heaps.hpp"
#include "cluster/policy/room_tree.hpp"
#include "engine/base/prng.hpp"

#include <gtest/gtest.h>

#include <map>
#include <optional>
#include <set>
#include <tuple>

namespace rollcast::policy {
namespace {

TEST(policy_cost, moving_is_compared_with_recomputing_in_whole_numbers) {
  kv_prices prices{.move_fixed_ns = 1000,
                   .move_ps_per_byte = 1000, // a byte a nanosecond
                   .restore_ps_per_byte = 1000,
                   .recompute_ns_per_token = 100};
  EXPECT_TRUE(moving_is_cheaper(20, 50, prices, nullptr)) << "1000 + 1000 of 2000: a tie moves";
  EXPECT_FALSE(moving_is_cheaper(20, 51, prices, nullptr));
  EXPECT_FALSE(moving_is_cheaper(10, 1, prices, nullptr)) << "the fixed price alone is 1000";
  EXPECT_TRUE(moving_is_cheaper(20, 25, prices, &prices)) << "brought back first";
  EXPECT_FALSE(moving_is_cheaper(20, 26, prices, &prices));
  prices.move_ps_per_byte = ~std::uint64_t{0};
  EXPECT_FALSE(moving_is_cheaper(0x7fff'ffff, 0xffff'ffff, prices, nullptr))
    << "saturates, never wraps";
}

TEST(policy_cost, blocks_are_rounded_up_and_remainders_never_below_zero) {
  EXPECT_EQ(blocks_for(0, 16), 0u);
  EXPECT_EQ(blocks_for(16, 16), 1u);
  EXPECT_EQ(blocks_for(17, 16), 2u);
  EXPECT_EQ(reserved_tokens(1, 100, 30), 30u);
  EXPECT_EQ(reserved_tokens(30, 100, 30), 30u);
  EXPECT_EQ(reserved_tokens(91, 100, 30), 100u) << "nobody outlives its limit";
  EXPECT_EQ(reserved_tokens(91, 100, 0), 91u);
  EXPECT_EQ(reserved_tokens(0xffff'ffff, 0xffff'ffff, 1024), 0xffff'ffffu) << "does not wrap";
  EXPECT_EQ(expected_remaining(50, 20, 100), 30u);
  EXPECT_EQ(expected_remaining(50, 60, 100), 0u);
  EXPECT_EQ(expected_remaining(500, 60, 100), 40u) << "nobody outlives its limit";
}

TEST(policy_id_ranges, holds_what_was_put_in_and_keeps_neighbours_together) {
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    prng rng{seed};
    id_ranges ranges;
    std::set<std::uint64_t> twin;
    for (int i = 0; i < 200; ++i) {
      const auto id = rng.below(100);
      ranges.insert(id);
      twin.insert(id);
      for (std::uint64_t x = 0; x <= 100; ++x)
        ASSERT_EQ(ranges.contains(x), twin.contains(x)) << "seed " << seed << ", id " << x;
    }
    std::size_t runs = 0;
    for (const auto id : twin)
      runs += !twin.contains(id + 1);
    EXPECT_EQ(ranges.ranges(), runs);
  }
}

TEST(policy_room_tree, names_the_roomiest_and_the_lowest_id_among_equals) {
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    prng rng{seed};
    room_tree tree;
    EXPECT_EQ(tree.best().room, 0u);
    std::map<std::uint32_t, std::uint64_t> twin;
    for (int i = 0; i < 300; ++i) {
      const auto slot = static_cast<std::uint32_t>(rng.below(70));
      twin[slot] = rng.below(8);
      tree.set(slot, 1000 - slot, twin[slot]);
      std::uint64_t room = 0;
      std::uint32_t best = 0;
      for (const auto& [s, r] : twin)
        if (r > 0 && r >= room) { // the highest slot has the lowest id
          room = r;
          best = s;
        }
      ASSERT_EQ(tree.best().room, room) << "seed " << seed;
      if (room > 0) {
        ASSERT_EQ(tree.best().slot, best) << "seed " << seed;
      }
    }
  }
}

TEST(policy_load_heaps, names_the_least_loaded_with_room_then_the_roomiest_then_the_lowest_id) {
  using key = std::tuple<std::uint32_t, std::uint64_t, std::uint64_t>; // load, -room, id
  for (std::uint64_t seed = 1; seed <= 40; ++seed) {
    prng rng{seed};
    load_heaps heaps;
    std::map<slot_t, key> twin;
    for (int i = 0; i < 400; ++i) {
      const auto slot = static_cast<slot_t>(rng.below(30));
      if (rng.chance(25)) {
        heaps.erase(slot);
        twin.erase(slot);
      } else {
        const auto load = static_cast<std::uint32_t>(rng.chance(5) ? 200 : rng.below(5));
        const auto room = rng.below(6);
        const std::uint64_t id = 100 - slot;
        heaps.set(slot, worker_id{id}, load, room);
        twin[slot] = {load, ~room, id};
      }
      ASSERT_EQ(heaps.empty(), twin.empty());
      const auto tokens = rng.below(7);
      const auto except = rng.chance(50) ? static_cast<slot_t>(rng.below(30)) : no_slot;
      std::optional<slot_t> best;
      for (const auto& [s, k] : twin)
        if (s != except && ~std::get<1>(k) >= tokens && (!best || k < twin.at(*best)))
          best = s;
      ASSERT_EQ(heaps.best(tokens, except), best) << "seed " << seed << ", step " << i;
    }
  }
}

} // namespace
} // namespace rollcast::policy
