// Goal: the pretended fabric, on which other tests rely, fails a group whose ranks mean different
// things: sizes of a transfer or a broadcast.
// Method: two ranks of it, polled in turn.

#include "tests/support/pretend_fabric.hpp"

#include <gtest/gtest.h>

#include <array>

namespace rollcast::test {
namespace {

struct fabric_test : testing::Test {
  fabric_test() {
    for (std::uint32_t r = 0; r < 2; ++r) {
      makers[r] = fabric.device(std::to_string(r));
      ranks[r] = *makers[r]->form("id", r, 2);
    }
  }
  /// @returns whether both are over, without a failure.
  bool works() {
    bool over = false;
    for (int i = 0; i < 3; ++i) {
      over = true;
      for (const auto& rank : ranks) {
        const auto said = rank->poll();
        if (!said)
          return false;
        over = over && *said;
      }
    }
    return over;
  }

  pretend_fabric fabric;
  std::array<std::unique_ptr<communicator_maker>, 2> makers;
  std::array<std::unique_ptr<communicator>, 2> ranks;
  std::array<std::byte, 8> a{}, b{};
};

TEST_F(fabric_test, moves_what_both_mean) {
  a.fill(std::byte{7});
  ASSERT_TRUE(ranks[0]->exchange({{1, a, {}}}) && ranks[1]->exchange({{0, {}, b}}));
  EXPECT_TRUE(works());
  EXPECT_EQ(a, b);
  ASSERT_TRUE(ranks[0]->broadcast(1, a) && ranks[1]->broadcast(1, b));
  EXPECT_TRUE(works());
}

TEST_F(fabric_test, fails_a_transfer_of_two_sizes) {
  ASSERT_TRUE(ranks[0]->exchange({{1, a, {}}})
              && ranks[1]->exchange({{0, {}, std::span{b}.first(7)}}));
  EXPECT_FALSE(works());
}

TEST_F(fabric_test, fails_a_broadcast_of_two_sizes) {
  ASSERT_TRUE(ranks[0]->broadcast(0, a) && ranks[1]->broadcast(0, std::span{b}.first(7)));
  EXPECT_FALSE(works());
}

} // namespace
} // namespace rollcast::test
