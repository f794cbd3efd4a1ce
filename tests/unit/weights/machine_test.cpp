// Goal: the rules of the update machine, one by one: who is told what, in which order, and what is
// refused with which line.
// Method: a fleet driven by hand; decisions are drained and looked for by kind. That the rules hold
// together, in any order of news, is the part of tests/sim/weights_sim.

#include "cluster/weights/fanout.hpp"
#include "cluster/weights/update_machine.hpp"

#include <gtest/gtest.h>

#include <vector>

namespace rollcast::weights {
namespace {

constexpr content_hash first_hash{1, 1};
constexpr content_hash second_hash{2, 2};

/// The decisions of one kind, in order.
template <class Kind>
std::vector<Kind> of(const std::vector<decision>& all) {
  std::vector<Kind> found;
  for (const auto& d : all)
    if (const auto* one = std::get_if<Kind>(&d))
      found.push_back(*one);
  return found;
}

class fleet_of_workers {
public:
  explicit fleet_of_workers(std::uint64_t workers) {
    for (std::uint64_t i = 1; i <= workers; ++i)
      join(i, {1, first_hash});
  }

  std::vector<decision> tell(const news& what) {
    last = machine.on(what);
    return machine.drain();
  }
  std::vector<decision> join(std::uint64_t id, served_weights serves) {
    return tell(worker_joined{{id}, "host", serves});
  }
  update_id begin(update_spec spec = {}) {
    const auto number = machine.begin(spec);
    EXPECT_TRUE(number) << number.error().detail;
    return number.value_or(update_id{});
  }
  std::vector<decision> commit(std::optional<content_hash> hash = {}) {
    EXPECT_TRUE(machine.commit(machine.update()->epoch, hash, 100));
    return machine.drain();
  }
  /// Takes the update that is distributed to its end.
  std::vector<decision> serve(content_hash hash) {
    const auto number = machine.update()->number;
    for (const auto& w : machine.workers())
      tell(prepared{w.worker, number, hash});
    tell(quiet{number});
    std::vector<decision> end;
    for (const auto& w : machine.workers())
      end = tell(flipped{w.worker, number});
    return end;
  }
  timer_id timer(const std::vector<decision>& among, deadline kind) {
    timer_id found;
    for (const auto& a : of<arm>(among))
      if (a.kind == kind)
        found = a.timer;
    EXPECT_NE(found, timer_id{});
    return found;
  }

  update_machine machine;
  verdict last = verdict::accepted;
};

TEST(update_machine, takes_an_update_from_begin_to_served) {
  fleet_of_workers fleet{2};
  const auto number = fleet.begin();
  EXPECT_EQ(fleet.machine.at(), phase::receiving);
  const auto told = of<prepare>(fleet.commit());
  ASSERT_EQ(told.size(), 2u);
  EXPECT_EQ(told[0].upstream, std::nullopt);
  EXPECT_EQ(told[1].upstream, worker_id{1});
  EXPECT_EQ(told[0].epoch, 2u) << "the next one";
  EXPECT_TRUE(of<hold>(fleet.tell(prepared{{1}, number, second_hash})).empty());
  EXPECT_EQ(of<hold>(fleet.tell(prepared{{2}, number, second_hash})).size(), 1u);
  EXPECT_EQ(fleet.machine.at(), phase::waiting);
  EXPECT_EQ(of<flip>(fleet.tell(quiet{number})).size(), 2u);
  EXPECT_EQ(fleet.machine.at(), phase::flipping);
  EXPECT_TRUE(of<ended>(fleet.tell(flipped{{2}, number})).empty());
  const auto end = fleet.tell(flipped{{1}, number});
  ASSERT_EQ(of<ended>(end).size(), 1u);
  EXPECT_EQ(of<ended>(end)[0].how, outcome::committed);
  EXPECT_EQ(of<release>(end).size(), 1u);
  EXPECT_EQ(fleet.machine.current(), (served_weights{2, second_hash}));
  EXPECT_EQ(fleet.machine.previous(), (served_weights{1, first_hash}));
}

TEST(update_machine, refuses_commands_out_of_turn_with_a_line) {
  fleet_of_workers fleet{1};
  EXPECT_EQ(fleet.machine.commit(2, {}, 1).error().code, errc::update_conflict);
  EXPECT_EQ(fleet.machine.abort(2).error().code, errc::update_conflict);
  EXPECT_EQ(fleet.machine.rollback().error().code, errc::stale_epoch);
  EXPECT_EQ(fleet.machine.begin({.epoch = 1}).error().code, errc::stale_epoch);
  fleet.begin({.epoch = 5});
  const auto second = fleet.machine.begin({});
  EXPECT_EQ(second.error().code, errc::update_conflict);
  EXPECT_EQ(second.error().detail,
            "begin of weights: the update to epoch 5 is receiving; commit or "
            "abort it first");
  EXPECT_EQ(fleet.machine.commit(4, {}, 1).error().code, errc::update_conflict);
  EXPECT_EQ(fleet.machine.abort(4).error().code, errc::update_conflict);
  EXPECT_EQ(fleet.machine.rollback().error().code, errc::update_conflict);
  EXPECT_TRUE(fleet.machine.abort(5));
  EXPECT_EQ(update_machine{}.begin({}).error().code, errc::update_conflict) << "nothing is served";
}

TEST(update_machine, an_aborted_epoch_may_be_sent_again_and_a_served_one_never) {
  fleet_of_workers fleet{1};
  const auto first = fleet.begin({.epoch = 4});
  EXPECT_TRUE(fleet.machine.abort(4));
  const auto again = fleet.begin({.epoch = 4});
  EXPECT_NE(first, again) << "numbers are never used again";
  fleet.commit();
  fleet.serve(second_hash);
  EXPECT_TRUE(fleet.machine.rollback());
  fleet.serve(first_hash);
  EXPECT_EQ(fleet.machine.current()->epoch, 1u);
  EXPECT_EQ(fleet.machine.begin({.epoch = 4}).error().code, errc::stale_epoch);
  EXPECT_EQ(fleet.machine.begin({.epoch = 2}).error().code, errc::stale_epoch);
  fleet.begin();
  EXPECT_EQ(fleet.machine.update()->epoch, 5u);
}

TEST(update_machine, content_that_one_refuses_is_refused_for_all) {
  fleet_of_workers fleet{3};
  const auto number = fleet.begin();
  fleet.commit();
  fleet.tell(prepared{{1}, number, second_hash});
  const auto end = fleet.tell(refused{{2}, number, {errc::bad_checkpoint, "NaN in a.weight", {}}});
  EXPECT_EQ(of<cancel>(end).size(), 3u);
  ASSERT_EQ(of<ended>(end).size(), 1u);
  EXPECT_EQ(of<ended>(end)[0].why.detail, "worker 2: NaN in a.weight");
  EXPECT_EQ(fleet.machine.current(), (served_weights{1, first_hash}));
  EXPECT_TRUE(fleet.machine.routable({2}));
}

TEST(update_machine, a_worker_without_memory_for_it_is_left_behind_unless_it_is_the_last) {
  fleet_of_workers fleet{3};
  const auto number = fleet.begin();
  fleet.commit();
  const error why{errc::queue_full, "no memory for 9 bytes", {}};
  const auto first = of<expel>(fleet.tell(refused{{2}, number, why}));
  ASSERT_EQ(first.size(), 1u);
  EXPECT_EQ(first[0].worker, worker_id{2});
  EXPECT_TRUE(first[0].for_good) << "it would fail again";
  EXPECT_EQ(of<expel>(fleet.tell(refused{{3}, number, why})).size(), 1u);
  const auto last = fleet.tell(refused{{1}, number, why});
  EXPECT_TRUE(of<expel>(last).empty());
  EXPECT_EQ(of<ended>(last).size(), 1u) << "refused for all";
  EXPECT_TRUE(fleet.machine.routable({1}));
}

TEST(update_machine, two_hashes_of_one_update_abort_it) {
  fleet_of_workers fleet{2};
  const auto number = fleet.begin();
  fleet.commit();
  fleet.tell(prepared{{1}, number, second_hash});
  EXPECT_EQ(of<ended>(fleet.tell(prepared{{2}, number, {9, 9}})).size(), 1u);
  const auto next = fleet.begin();
  fleet.commit(content_hash{7, 7});
  EXPECT_EQ(of<ended>(fleet.tell(prepared{{1}, next, second_hash})).size(), 1u) << "told by commit";
}

TEST(update_machine, who_dies_while_preparing_leaves_its_successor_to_its_upstream) {
  fleet_of_workers fleet{3};
  const auto number = fleet.begin();
  fleet.commit();
  const auto moved = of<redirect>(fleet.tell(worker_lost{{2}}));
  ASSERT_EQ(moved.size(), 1u);
  EXPECT_EQ(moved[0].worker, worker_id{3});
  EXPECT_EQ(moved[0].upstream, worker_id{1});
  const auto failed = of<redirect>(fleet.tell(upstream_failed{{3}, number}));
  ASSERT_EQ(failed.size(), 1u);
  EXPECT_EQ(failed[0].upstream, std::nullopt) << "the coordinator has everything";
}

TEST(update_machine, a_silent_worker_is_dropped_and_signs_of_life_put_that_off) {
  fleet_of_workers fleet{2};
  const auto number = fleet.begin();
  const auto told = fleet.commit();
  const auto silence = fleet.timer(told, deadline::silence); // of worker 2
  fleet.tell(prepared{{1}, number, second_hash});
  const auto later = fleet.timer(fleet.tell(progressed{{2}, number, 50}), deadline::silence);
  fleet.tell(expired{silence});
  EXPECT_EQ(fleet.last, verdict::stale);
  const auto end = fleet.tell(expired{later});
  EXPECT_EQ(of<expel>(end).size(), 1u);
  EXPECT_FALSE(of<expel>(end)[0].for_good);
  EXPECT_EQ(of<hold>(end).size(), 1u) << "the other goes on";
}

TEST(update_machine, nothing_is_awaited_of_a_worker_whose_update_was_aborted) {
  fleet_of_workers fleet{1};
  fleet.begin();
  const auto silence = fleet.timer(fleet.commit(), deadline::silence);
  EXPECT_TRUE(fleet.machine.abort(2));
  fleet.machine.drain().clear();
  EXPECT_TRUE(fleet.tell(expired{silence}).empty());
  EXPECT_EQ(fleet.last, verdict::stale);
}

TEST(update_machine, a_fleet_that_died_is_waited_for_until_the_deadline) {
  fleet_of_workers fleet{1};
  fleet.begin();
  const auto preparing = fleet.timer(fleet.commit(), deadline::preparing);
  EXPECT_TRUE(of<ended>(fleet.tell(worker_lost{{1}})).empty());
  EXPECT_EQ(fleet.machine.at(), phase::distributing);
  const auto back = fleet.join(2, {1, first_hash});
  EXPECT_EQ(of<prepare>(back).size(), 1u);
  fleet.tell(worker_lost{{2}});
  const auto end = of<ended>(fleet.tell(expired{preparing}));
  ASSERT_EQ(end.size(), 1u);
  EXPECT_EQ(end[0].how, outcome::aborted);
}

TEST(update_machine, the_time_for_preparing_is_not_given_twice) {
  fleet_of_workers fleet{1};
  const auto number = fleet.begin();
  const auto preparing = fleet.timer(fleet.commit(), deadline::preparing);
  fleet.tell(prepared{{1}, number, second_hash});
  fleet.tell(expired{preparing}); // The fleet waits already.
  fleet.join(2, {1, first_hash});
  EXPECT_EQ(fleet.machine.at(), phase::waiting);
  const auto end = fleet.tell(worker_lost{{1}});
  EXPECT_EQ(of<ended>(end).size(), 1u);
  EXPECT_TRUE(of<prepare>(end).empty());
  EXPECT_EQ(of<admit>(end).size(), 1u) << "of the old epoch";
}

TEST(update_machine, from_the_first_flip_on_it_only_goes_forward) {
  fleet_of_workers fleet{2};
  const auto number = fleet.begin();
  fleet.commit();
  for (const std::uint64_t id : {1, 2})
    fleet.tell(prepared{{id}, number, second_hash});
  const auto told = fleet.tell(quiet{number});
  EXPECT_EQ(fleet.machine.abort(2).error().code, errc::update_conflict);
  fleet.tell(flipped{{1}, number});
  const auto end = fleet.tell(expired{fleet.timer(told, deadline::flipping)});
  ASSERT_EQ(of<expel>(end).size(), 1u);
  EXPECT_EQ(of<expel>(end)[0].worker, worker_id{2});
  ASSERT_EQ(of<ended>(end).size(), 1u);
  EXPECT_EQ(of<ended>(end)[0].how, outcome::committed);
}

TEST(update_machine, what_runs_too_long_aborts_the_update_that_waits_for_it) {
  fleet_of_workers fleet{1};
  const auto number = fleet.begin();
  fleet.commit();
  const auto told = fleet.tell(prepared{{1}, number, second_hash});
  const auto end = fleet.tell(expired{fleet.timer(told, deadline::waiting)});
  EXPECT_EQ(of<ended>(end).size(), 1u);
  EXPECT_EQ(of<release>(end).size(), 1u);
  EXPECT_TRUE(of<flip>(fleet.tell(quiet{number})).empty()) << "too late";
}

TEST(update_machine, who_comes_back_with_old_weights_is_fed_before_it_is_admitted) {
  fleet_of_workers fleet{1};
  fleet.begin();
  fleet.commit();
  fleet.serve(second_hash);
  const auto fed = fleet.join(2, {1, first_hash});
  EXPECT_TRUE(of<admit>(fed).empty());
  ASSERT_EQ(of<prepare>(fed).size(), 1u);
  EXPECT_EQ(of<prepare>(fed)[0].what, cargo::whole);
  const auto feeding = of<prepare>(fed)[0].update;
  EXPECT_EQ(of<flip>(fleet.tell(prepared{{2}, feeding, second_hash})).size(), 1u) << "on its own";
  EXPECT_FALSE(fleet.machine.routable({2}));
  EXPECT_EQ(of<admit>(fleet.tell(flipped{{2}, feeding})).size(), 1u);
}

TEST(update_machine, what_is_fed_is_cancelled_once_it_is_old) {
  fleet_of_workers fleet{1};
  fleet.begin();
  fleet.commit();
  fleet.serve(second_hash);
  const auto number = fleet.begin({.covers = coverage::changed_only});
  fleet.commit();
  const auto feeding = of<prepare>(fleet.join(2, {1, first_hash}))[0].update;
  fleet.tell(prepared{{1}, number, {3, 3}});
  fleet.tell(quiet{number});
  const auto end = fleet.tell(flipped{{1}, number});
  ASSERT_EQ(of<cancel>(end).size(), 1u);
  EXPECT_EQ(of<cancel>(end)[0].update, feeding);
  ASSERT_EQ(of<prepare>(end).size(), 1u);
  EXPECT_EQ(of<prepare>(end)[0].epoch, 3u);
}

TEST(update_machine, who_was_fed_and_has_another_hash_is_refused_for_good) {
  fleet_of_workers fleet{1};
  fleet.begin();
  fleet.commit();
  fleet.serve(second_hash);
  const auto feeding = of<prepare>(fleet.join(2, {1, {5, 5}}))[0].update;
  const auto end = of<expel>(fleet.tell(prepared{{2}, feeding, {6, 6}}));
  ASSERT_EQ(end.size(), 1u);
  EXPECT_TRUE(end[0].for_good);
  EXPECT_NE(end[0].why.detail.find(to_string(second_hash)), std::string::npos);
  EXPECT_NE(end[0].why.detail.find(to_string(content_hash{6, 6})), std::string::npos);
}

TEST(update_machine, a_complete_update_takes_along_who_serves_something_else) {
  fleet_of_workers fleet{1};
  const auto feeding = of<prepare>(fleet.join(2, {7, {5, 5}}))[0].update;
  fleet.tell(prepared{{2}, feeding, {5, 5}}); // nothing is held that could turn it into epoch 1
  EXPECT_FALSE(fleet.machine.routable({2}));
  fleet.begin({.epoch = 8, .covers = coverage::changed_only});
  EXPECT_EQ(of<prepare>(fleet.commit()).size(), 1u);
  EXPECT_TRUE(fleet.machine.abort(8));
  fleet.begin({.epoch = 8});
  EXPECT_EQ(of<prepare>(fleet.commit()).size(), 2u);
  EXPECT_EQ(of<admit>(fleet.serve(second_hash)).size(), 1u);
}

TEST(update_machine, goes_back_by_the_buffer_that_was_kept_and_feeds_who_kept_none) {
  fleet_of_workers fleet{2};
  fleet.begin();
  fleet.commit();
  fleet.serve(second_hash);
  fleet.begin();
  fleet.commit();
  fleet.serve({3, 3});
  fleet.tell(worker_lost{{1}});
  const auto feeding = of<prepare>(fleet.join(3, {1, first_hash}))[0].update;
  fleet.tell(prepared{{3}, feeding, {3, 3}});
  fleet.tell(flipped{{3}, feeding});
  ASSERT_TRUE(fleet.machine.rollback());
  const auto told = of<prepare>(fleet.machine.drain());
  ASSERT_EQ(told.size(), 1u);
  EXPECT_EQ(told[0].worker, worker_id{3});
  EXPECT_EQ(told[0].epoch, 2u);
  EXPECT_FALSE(told[0].upstream) << "the others kept no tensors to forward";
  const auto number = fleet.machine.update()->number;
  fleet.tell(prepared{{3}, number, second_hash});
  const auto flips = of<flip>(fleet.tell(quiet{number}));
  ASSERT_EQ(flips.size(), 2u);
  EXPECT_TRUE(flips[0].back);
  EXPECT_FALSE(flips[1].back);
  fleet.tell(flipped{{2}, number});
  EXPECT_EQ(of<ended>(fleet.tell(flipped{{3}, number}))[0].how, outcome::rolled_back);
  EXPECT_EQ(fleet.machine.rollback().error().code, errc::stale_epoch) << "once";
}

TEST(update_machine, late_news_changes_nothing) {
  fleet_of_workers fleet{2};
  const auto old = fleet.begin();
  fleet.commit();
  EXPECT_TRUE(fleet.machine.abort(2));
  EXPECT_EQ(of<cancel>(fleet.machine.drain()).size(), 2u);
  const auto number = fleet.begin();
  fleet.commit();
  fleet.tell(worker_lost{{2}});
  const std::vector<news> late{prepared{{1}, old, second_hash},
                               flipped{{1}, old},
                               refused{{1}, old, {}},
                               progressed{{1}, old, 5},
                               upstream_failed{{1}, old},
                               prepared{{2}, number, second_hash},
                               worker_lost{{2}},
                               worker_joined{{2}, "host", {1, first_hash}},
                               quiet{number},
                               flipped{{1}, number},
                               expired{{1}},
                               expired{{}}};
  for (const auto& n : late) {
    EXPECT_TRUE(fleet.tell(n).empty()) << n.index();
    EXPECT_EQ(fleet.last, verdict::stale) << n.index();
  }
  EXPECT_EQ(fleet.machine.at(), phase::distributing);
}

TEST(update_machine, a_controller_that_falls_silent_loses_its_update) {
  fleet_of_workers fleet{1};
  const auto number = fleet.begin();
  const auto early = fleet.timer(fleet.machine.drain(), deadline::receiving);
  fleet.machine.received(number);
  const auto late = fleet.timer(fleet.machine.drain(), deadline::receiving);
  EXPECT_TRUE(of<ended>(fleet.tell(expired{early})).empty());
  EXPECT_EQ(of<ended>(fleet.tell(expired{late})).size(), 1u);
}

TEST(plan_chain, enters_each_host_once_and_the_coordinators_own_first) {
  const std::vector<chain_member> members{
    {{4}, "b"}, {{1}, "a"}, {{2}, "b"}, {{3}, "a"}, {{5}, "c"}};
  const std::vector<chain_link> want{
    {{5}, {}}, {{1}, worker_id{5}}, {{3}, worker_id{1}}, {{2}, worker_id{3}}, {{4}, worker_id{2}}};
  EXPECT_EQ(plan_chain(members, "c"), want);
  EXPECT_EQ(plan_chain(members, "")[0].worker, worker_id{1});
  EXPECT_TRUE(plan_chain({}, "c").empty());
}

} // namespace
} // namespace rollcast::weights
