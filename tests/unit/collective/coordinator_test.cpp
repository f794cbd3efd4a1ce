// Goal: the coordinator forms a group only of workers with a device of their own, opens it only
// when all are ready, has one round at a time under way, and ends an epoch when a member goes, says
// that it failed, or says nothing in time; after some failures in a row it stops trying.
// Method: the machine alone, told what members would say; time is a number.

#include "cluster/collective/coordinator.hpp"
#include "cluster/collective/member.hpp"

#include <gtest/gtest.h>

#include <map>

namespace rollcast::collective {
namespace {

using namespace std::chrono_literals;

constexpr instant member_fetch_max = member_limits{}.fetch_max;

struct coordinator_test : testing::Test {
  std::vector<coordinator::addressed> turn(instant by) {
    now += by;
    sut.turn(now);
    return sut.drain();
  }
  std::vector<coordinator::addressed> say(news what) {
    sut.on(what, now);
    return sut.drain();
  }
  static news of(std::uint64_t worker, news_kind kind, std::uint64_t epoch,
                 std::uint64_t round = 0) {
    return {.worker = {worker}, .kind = kind, .epoch = epoch, .round = round};
  }
  static news wants(std::uint64_t holder, std::uint64_t puller, std::uint64_t pull,
                    std::uint64_t bytes = 10) {
    auto n = of(holder, news_kind::wanted, 1);
    n.moves = {{{puller}, pull, 0, 0, bytes}};
    return n;
  }
  /// Workers 1 to `count`, each with a device, in an open epoch 1.
  void open(std::uint64_t count) {
    for (std::uint64_t w = 1; w <= count; ++w)
      sut.joined({w}, "device " + std::to_string(w), now);
    turn(1s);
    auto id = of(1, news_kind::id_made, 1);
    id.id = "id";
    say(id);
    for (std::uint64_t w = 1; w <= count; ++w)
      say(of(w, news_kind::ready, 1));
    ASSERT_EQ(sut.members().size(), count);
  }
  static std::size_t count(const std::vector<coordinator::addressed>& orders, order_kind kind) {
    return static_cast<std::size_t>(std::count_if(
      orders.begin(), orders.end(), [&](const auto& o) { return o.what.kind == kind; }));
  }

  coordinator sut;
  instant now = 100s;
};

TEST_F(coordinator_test, forms_a_group_of_those_with_devices_of_their_own) {
  sut.joined({1}, "a", now);
  sut.joined({2}, "", now);
  sut.joined({3}, "a", now);
  EXPECT_TRUE(turn(10s).empty()) << "one device is no group";
  sut.joined({4}, "b", now);
  EXPECT_TRUE(turn(900ms).empty()) << "others may come";
  auto orders = turn(100ms);
  ASSERT_EQ(orders.size(), 1u);
  EXPECT_EQ(orders[0].to, worker_id{1});
  EXPECT_EQ(orders[0].what.kind, order_kind::make_id);
  auto made = of(1, news_kind::id_made, 1);
  made.id = "id";
  orders = say(made);
  ASSERT_EQ(orders.size(), 2u);
  EXPECT_EQ(orders[1].to, worker_id{4});
  EXPECT_EQ(orders[1].what.rank, 1u);
  EXPECT_EQ(orders[1].what.id, "id");
  EXPECT_EQ(orders[1].what.members, (std::vector<worker_id>{{1}, {4}}));
  EXPECT_TRUE(say(of(4, news_kind::ready, 1)).empty());
  EXPECT_TRUE(say(of(4, news_kind::ready, 1)).empty()) << "said twice";
  EXPECT_TRUE(sut.members().empty()) << "used before all are ready";
  EXPECT_EQ(count(say(of(1, news_kind::ready, 1)), order_kind::open), 2u);
  EXPECT_EQ(sut.members().size(), 2u);
}

TEST_F(coordinator_test, has_one_round_at_a_time_in_one_order) {
  open(3);
  auto orders = say(wants(1, 2, 7));
  ASSERT_EQ(orders.size(), 2u) << "the third takes no part";
  EXPECT_EQ(orders[0].what.moves, (std::vector<move>{{{2}, 7, 0, 1, 10}}));
  EXPECT_EQ(orders[0].what.round, orders[1].what.round);
  EXPECT_TRUE(say(wants(2, 3, 8)).empty()) << "one at a time";
  EXPECT_TRUE(say(wants(3, 1, 9)).empty());
  EXPECT_TRUE(say(of(1, news_kind::round_done, 1, 1)).empty());
  orders = say(of(2, news_kind::round_done, 1, 1));
  ASSERT_EQ(orders.size(), 3u) << "what waited goes together";
  for (const auto& o : orders)
    EXPECT_EQ(o.what.round, 2u);
  EXPECT_EQ(orders[2].what.moves.size(), 2u) << "worker 3 sends one and gets one";
  EXPECT_EQ(sut.counts().moves, 1u);
}

TEST_F(coordinator_test, bounds_a_round) {
  open(2);
  say(wants(1, 2, 1));
  for (std::uint64_t pull = 2; pull < 20; ++pull)
    say(wants(1, 2, pull, std::uint64_t{200} << 20));
  say(of(1, news_kind::round_done, 1, 1));
  const auto orders = say(of(2, news_kind::round_done, 1, 1));
  ASSERT_EQ(orders.size(), 2u);
  EXPECT_EQ(orders[0].what.moves.size(), 5u) << "1 GiB";
}

TEST_F(coordinator_test, more_is_wanted_than_rounds_can_carry_and_they_carry_what_is_waited_for) {
  open(2);
  std::map<std::uint64_t, instant> wanted;
  std::size_t in_time = 0;
  std::size_t told = 0;
  std::uint64_t round = 0;
  const auto look = [&](const std::vector<coordinator::addressed>& orders) {
    for (const auto& o : orders) {
      if (o.to != worker_id{2})
        continue;
      if (o.what.kind == order_kind::run)
        round = o.what.round;
      for (const auto& m : o.what.moves) {
        const bool waits = now - wanted.at(m.pull) < member_fetch_max;
        in_time += o.what.kind == order_kind::run && waits ? 1 : 0;
        told += o.what.kind == order_kind::decline && waits ? 1 : 0;
      }
    }
  };
  // A round of 8 moves takes half a second, in which 16 more are wanted.
  for (int half_second = 0; half_second < 40; ++half_second, now += 500ms) {
    if (round > 0) {
      say(of(1, news_kind::round_done, 1, round));
      look(say(of(2, news_kind::round_done, 1, round)));
    }
    for (int i = 0; i < 16; ++i) {
      const auto pull = wanted.size() + 1;
      wanted[pull] = now;
      look(say(wants(1, 2, pull)));
    }
  }
  EXPECT_GE(in_time, 39u * 8u * 9u / 10u) << "what nobody waits for is carried";
  EXPECT_GE(told, wanted.size() / 3) << "who waits in vain goes another way at once";
}

TEST_F(coordinator_test, makes_no_move_that_one_of_its_sides_has_given_up) {
  open(3);
  say(wants(1, 2, 7));
  say(wants(1, 3, 8)); // these wait for the round that runs
  say(wants(1, 2, 9));
  auto declined = of(3, news_kind::declined, 1); // the puller
  declined.moves = {{{3}, 8, 0, 0, 10}};
  auto orders = say(declined);
  ASSERT_EQ(count(orders, order_kind::decline), 2u);
  EXPECT_EQ(orders[0].to, worker_id{1}) << "lets the image go";
  declined = of(1, news_kind::declined, 1); // the holder
  declined.moves = {{{2}, 9, 0, 0, 10}};
  EXPECT_EQ(count(say(declined), order_kind::decline), 2u);
  say(of(1, news_kind::round_done, 1, 1));
  EXPECT_TRUE(say(of(2, news_kind::round_done, 1, 1)).empty());
}

TEST_F(coordinator_test, declines_once_what_its_puller_gives_up_before_anybody_has_given_it) {
  open(2);
  auto declined = of(2, news_kind::declined, 1);
  declined.moves = {{{2}, 9, 0, 0, 10}};
  const auto orders = say(declined);
  ASSERT_EQ(orders.size(), 1u);
  EXPECT_EQ(orders[0].to, worker_id{2});
}

TEST_F(coordinator_test, declines_what_goes_to_no_member) {
  open(2);
  const auto orders = say(wants(1, 9, 7));
  ASSERT_EQ(orders.size(), 1u);
  EXPECT_EQ(orders[0].what.kind, order_kind::decline);
  EXPECT_EQ(orders[0].to, worker_id{1});
}

TEST_F(coordinator_test, tells_all_what_will_not_be_sent_whoever_says_so) {
  open(3);
  auto declined = of(1, news_kind::declined, 0); // it has no epoch any more
  declined.slices.update = 5;
  auto orders = say(declined);
  ASSERT_EQ(count(orders, order_kind::decline), 3u);
  EXPECT_EQ(orders[1].what.slices.update, 5u);
  EXPECT_EQ(orders[1].what.epoch, 1u) << "of the epoch in which they wait";
  declined.slices = {};
  declined.moves = {{{2}, 7, 0, 0, 10}};
  orders = say(declined);
  ASSERT_EQ(count(orders, order_kind::decline), 2u);
  EXPECT_EQ(orders[1].to, worker_id{2}) << "who pulls it";
}

TEST_F(coordinator_test, casts_nothing_that_was_offered_and_is_declined) {
  open(2);
  say(wants(1, 2, 7));
  auto offer = of(2, news_kind::offered, 1);
  offer.slices = {5, 0, 0, 4, 100, false};
  say(offer);
  auto declined = of(2, news_kind::declined, 1);
  declined.slices.update = 5;
  say(declined);
  say(of(1, news_kind::round_done, 1, 1));
  EXPECT_TRUE(say(of(2, news_kind::round_done, 1, 1)).empty());
}

TEST_F(coordinator_test, ends_the_epoch_when_a_member_goes) {
  open(3);
  say(wants(1, 2, 7));
  sut.left({3}, now); // which takes no part in the round, but the group is not what it was
  const auto orders = sut.drain();
  EXPECT_EQ(count(orders, order_kind::abort), 2u);
  EXPECT_TRUE(sut.members().empty());
  EXPECT_TRUE(say(of(1, news_kind::round_done, 1, 1)).empty()) << "old news";
  const auto again = turn(1s);
  ASSERT_EQ(again.size(), 1u);
  EXPECT_EQ(again[0].what.epoch, 2u);
  EXPECT_EQ(sut.counts().failures, 0u) << "nothing was wrong with the group";
}

TEST_F(coordinator_test, lets_a_round_end_before_a_newcomer_is_taken_in) {
  open(2);
  say(wants(1, 2, 7));
  sut.joined({3}, "device 3", now);
  EXPECT_TRUE(sut.drain().empty());
  say(of(1, news_kind::round_done, 1, 1));
  EXPECT_EQ(count(say(of(2, news_kind::round_done, 1, 1)), order_kind::abort), 2u);
  const auto orders = turn(0s);
  ASSERT_EQ(orders.size(), 1u);
  EXPECT_EQ(orders[0].what.kind, order_kind::make_id);
}

TEST_F(coordinator_test, a_member_that_says_nothing_ends_the_epoch_in_time) {
  open(2);
  say(wants(1, 2, 7));
  say(of(1, news_kind::round_done, 1, 1));
  EXPECT_TRUE(turn(19s).empty());
  EXPECT_EQ(count(turn(1s), order_kind::abort), 2u);
  EXPECT_EQ(sut.counts().failures, 1u);
  EXPECT_NE(sut.last_failure().find("1 of 2 members"), std::string::npos) << sut.last_failure();
}

TEST_F(coordinator_test, stops_trying_until_the_members_change) {
  sut.joined({1}, "a", now);
  sut.joined({2}, "b", now);
  for (std::uint64_t epoch = 1; epoch <= 4; ++epoch) {
    ASSERT_EQ(count(turn(10s), order_kind::make_id), 1u) << epoch;
    auto failed = of(1, news_kind::failed, epoch);
    failed.why = "no library";
    EXPECT_EQ(count(say(failed), order_kind::abort), 2u);
  }
  for (int i = 0; i < 100; ++i)
    EXPECT_TRUE(turn(60s).empty());
  EXPECT_EQ(sut.last_failure(), "worker 1: no library");
  sut.joined({3}, "c", now);
  EXPECT_EQ(count(turn(1s), order_kind::make_id), 1u);
  auto failed = of(1, news_kind::failed, 5);
  failed.why = "no library\nand a line of its own " + std::string(10'000, 'x');
  say(failed);
  EXPECT_EQ(sut.last_failure().find('\n'), std::string::npos);
  EXPECT_LT(sut.last_failure().size(), 5'000u);
}

TEST_F(coordinator_test, casts_go_to_all_and_take_turns_with_moves) {
  open(3);
  auto offer = of(2, news_kind::offered, 1);
  offer.slices = {5, 0, 0, 4, 100, false};
  auto orders = say(offer);
  ASSERT_EQ(orders.size(), 3u);
  EXPECT_EQ(orders[0].what.slices.root, 1u);
  say(wants(1, 2, 7));
  say(offer);
  for (std::uint64_t w = 1; w <= 3; ++w)
    orders = say(of(w, news_kind::round_done, 1, 1));
  ASSERT_EQ(orders.size(), 2u) << "the move";
  say(of(1, news_kind::round_done, 1, 2));
  orders = say(of(2, news_kind::round_done, 1, 2));
  EXPECT_EQ(orders.size(), 3u) << "the next slices";
  EXPECT_EQ(sut.counts().cast_bytes, 100u);
}

} // namespace
} // namespace rollcast::collective
