// Goal: the time to give an update to all workers hardly grows along a chain, grows with the number
// of workers where one node sends to all, and survives a worker that dies half way.
// Method: the 100 M model (400 MB of f32) at 10 Gbit/s, event by event; known sums for one worker
// and for a star.

#include "cluster/sim/weight_fanout.hpp"

#include <gtest/gtest.h>

namespace rollcast::sim {
namespace {

double seconds(fanout_shape shape, std::uint32_t workers) {
  fanout_load load;
  load.shape = shape;
  load.workers = workers;
  return fanout_seconds(load);
}

TEST(weight_fanout, one_worker_takes_the_time_of_the_bytes) {
  for (const auto shape : {fanout_shape::chain, fanout_shape::tree, fanout_shape::star})
    EXPECT_NEAR(seconds(shape, 1), 400e6 / 1.25e9 + 100e-6, 1e-9);
}

TEST(weight_fanout, along_a_chain_eight_workers_take_hardly_longer_than_two) {
  const auto two = seconds(fanout_shape::chain, 2);
  const auto eight = seconds(fanout_shape::chain, 8);
  RecordProperty("two_ms", static_cast<int>(two * 1000));
  RecordProperty("eight_ms", static_cast<int>(eight * 1000));
  EXPECT_LT(eight, 1.3 * two);
  EXPECT_GT(eight, two);
}

TEST(weight_fanout, a_star_grows_with_the_workers_and_a_tree_with_its_fan) {
  EXPECT_NEAR(seconds(fanout_shape::star, 8) / seconds(fanout_shape::star, 2), 4, 0.05);
  const auto chain = seconds(fanout_shape::chain, 8);
  const auto tree = seconds(fanout_shape::tree, 8);
  EXPECT_GT(tree, 1.8 * chain) << "its inner nodes send everything twice";
  EXPECT_LT(tree, seconds(fanout_shape::star, 8) / 3);
}

TEST(weight_fanout, slices_as_large_as_the_update_make_a_chain_a_relay) {
  fanout_load load;
  load.workers = 8;
  load.slice_bytes = load.bytes;
  EXPECT_NEAR(fanout_seconds(load), 8 * (0.32 + 100e-6), 1e-6);
}

TEST(weight_fanout, a_worker_that_dies_half_way_costs_less_than_a_second_update) {
  fanout_load load;
  load.workers = 8;
  const auto well = fanout_seconds(load);
  for (std::uint32_t i = 0; i < load.workers; ++i) {
    load.dies = i;
    const auto hurt = fanout_seconds(load);
    EXPECT_LT(hurt, 2 * well) << "worker " << i;
    EXPECT_GE(hurt, well - 0.02) << "worker " << i;
  }
}

TEST(weight_fanout, every_shape_ends_without_the_one_that_died) {
  for (const auto shape : {fanout_shape::chain, fanout_shape::tree, fanout_shape::star}) {
    fanout_load load;
    load.shape = shape;
    load.workers = 7;
    load.dies = 0;
    EXPECT_GT(fanout_seconds(load), 0.3);
  }
}

} // namespace
} // namespace rollcast::sim
