// Goal: a worker's prices are what it measured, and none outlives what it was measured on.
// Method: made-up measurements on a made-up clock.

#include "actors/price_meter.hpp"

#include <gtest/gtest.h>

namespace rollcast {
namespace {

using std::chrono::microseconds;
using std::chrono::seconds;

const price_meter::clock::time_point start{seconds{1000}};

TEST(price_meter, knows_nothing_at_first) {
  EXPECT_EQ(price_meter{}.prices(start), policy::kv_prices{});
}

TEST(price_meter, a_token_costs_what_one_row_more_costs_a_step) {
  price_meter m;
  for (int round = 0; round < 20; ++round)
    for (unsigned rows = 16; rows <= 64; rows += 16)
      m.stepped(rows, microseconds{10'000 + 500 * rows}, start);
  EXPECT_NEAR(static_cast<double>(m.prices(start).recompute_ns_per_token), 500'000, 5'000);
  m.stepped(3, seconds{9}, start);
  EXPECT_NEAR(static_cast<double>(m.prices(start).recompute_ns_per_token), 500'000, 5'000)
    << "a step of few rows tells nothing";
}

TEST(price_meter, the_newest_measurement_weighs_most) {
  price_meter m;
  for (int i = 0; i < 30; ++i)
    m.pulled(100, microseconds{50'000}, start);
  for (int i = 0; i < 30; ++i)
    m.pulled(100, microseconds{10'000}, start);
  EXPECT_NEAR(static_cast<double>(m.prices(start).move_ps_per_byte), 100e6, 10e6);
}

TEST(price_meter, a_pull_has_a_fixed_part_and_one_by_size) {
  price_meter m;
  for (std::uint64_t bytes = 100'000; bytes <= 1'000'000; bytes += 100'000)
    m.pulled(bytes, microseconds{2000 + bytes / 1000}, start);
  EXPECT_NEAR(static_cast<double>(m.prices(start).move_fixed_ns), 2e6, 1e4);
  EXPECT_NEAR(static_cast<double>(m.prices(start).move_ps_per_byte), 1000, 10);
}

TEST(price_meter, sizes_that_are_alike_say_nothing_about_a_fixed_part) {
  price_meter m;
  for (int i = 0; i < 5; ++i)
    m.pulled(1000, microseconds{10 + i}, start);
  EXPECT_EQ(m.prices(start).move_fixed_ns, 1u) << "next to nothing, and known";
  EXPECT_NEAR(static_cast<double>(m.prices(start).move_ps_per_byte), 12'000, 500);
}

TEST(price_meter, noise_that_slopes_down_makes_no_negative_price) {
  price_meter m;
  m.pulled(1000, microseconds{100}, start);
  m.pulled(100'000, microseconds{10}, start);
  EXPECT_GT(m.prices(start).move_ps_per_byte, 0u);
  EXPECT_LT(m.prices(start).move_ps_per_byte, 1000u);
}

TEST(price_meter, spilling_is_priced_there_and_back) {
  price_meter m;
  m.spilled(1000, microseconds{3}, start);
  EXPECT_EQ(m.prices(start).restore_ps_per_byte, 0u) << "half of it is no price";
  m.restored(1000, microseconds{1}, start);
  EXPECT_EQ(m.prices(start).restore_ps_per_byte, 4000u);
}

TEST(price_meter, an_old_price_is_forgotten_so_that_it_is_tried_again) {
  price_meter m;
  m.pulled(1000, seconds{1}, start);
  EXPECT_GT(m.prices(start + price_meter::price_age_max).move_ps_per_byte, 0u);
  const auto later = start + price_meter::price_age_max + seconds{1};
  EXPECT_EQ(m.prices(later).move_ps_per_byte, 0u);
  m.pulled(1000, microseconds{1}, later);
  EXPECT_EQ(m.prices(later).move_ps_per_byte, 1000u) << "and weighs nothing in a new one";
}

} // namespace
} // namespace rollcast
