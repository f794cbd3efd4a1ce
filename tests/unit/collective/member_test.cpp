// Goal: a member moves bytes as it is told, ends whatever was asked of it in time, holds memory as
// long as the communicator may touch it, and takes part in a round even if it lacks what it should
// give or take.
// Method: two members over a pretended fabric, ordered about by hand; time is a number.

#include "cluster/collective/member.hpp"
#include "tests/support/pretend_fabric.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>

namespace rollcast::collective {
namespace {

using namespace std::chrono_literals;

struct member_test : testing::Test {
  struct half {
    half(test::pretend_fabric& fabric, const std::string& device, worker_id id)
      : maker(fabric.device(device)), sut(*maker) {
      sut.serve(id);
    }
    std::unique_ptr<communicator_maker> maker;
    member sut;
    std::vector<news> said;
  };

  void turn(instant by = 1ms) {
    now += by;
    for (auto* h : {&a, &b}) {
      h->sut.turn(now);
      for (auto& n : h->sut.drain())
        h->said.push_back(std::move(n));
    }
  }
  void both(order what) {
    for (auto* h : {&a, &b}) {
      what.rank = h == &a ? 0 : 1;
      h->sut.obey(what, now);
    }
    turn();
  }
  void open(std::uint64_t epoch = 1) {
    both({.kind = order_kind::form,
          .epoch = epoch,
          .members = {{1}, {2}},
          .id = "epoch " + std::to_string(epoch)});
    turn();
    ASSERT_TRUE(has(a, news_kind::ready) && has(b, news_kind::ready));
    both({.kind = order_kind::open, .epoch = epoch});
    ASSERT_EQ(b.sut.peers().size(), 2u);
  }
  order run(std::uint64_t round, std::uint64_t bytes) {
    return {.kind = order_kind::run, .epoch = 1, .round = round, .moves = {{{2}, 7, 0, 1, bytes}}};
  }
  static bool has(const half& h, news_kind kind) {
    return std::any_of(h.said.begin(), h.said.end(), [&](const news& n) { return n.kind == kind; });
  }
  /// Has b ask for `bytes` under number 7.
  void fetch(std::size_t bytes) {
    into = std::make_shared<kv_bytes>(bytes);
    b.sut.fetch(
      7, into, [this](result<void> how) { heard.push_back(std::move(how)); }, now);
  }
  void give(std::size_t bytes) {
    const auto image = std::make_shared<kv_bytes>(bytes, std::byte{42});
    a.sut.give({2}, 7, *image, image, now);
    turn();
  }

  std::vector<result<void>> heard; // outlives the members, whose ends are heard too
  test::pretend_fabric fabric;
  half a{fabric, "device a", {1}};
  half b{fabric, "device b", {2}};
  kv_carrier::memory into;
  instant now = 100s;
};

TEST_F(member_test, moves_what_is_given_to_who_fetches_it) {
  open();
  fetch(1'000);
  give(1'000);
  ASSERT_TRUE(has(a, news_kind::wanted));
  EXPECT_EQ(a.said.back().moves[0].bytes, 1'000u);
  both(run(1, 1'000));
  turn();
  ASSERT_EQ(heard.size(), 1u);
  EXPECT_TRUE(heard[0]);
  EXPECT_EQ(*into, kv_bytes(1'000, std::byte{42}));
  EXPECT_TRUE(has(a, news_kind::round_done) && has(b, news_kind::round_done));
}

TEST_F(member_test, takes_part_without_what_it_should_give) {
  open();
  fetch(1'000);
  both(run(1, 1'000));
  turn();
  ASSERT_EQ(heard.size(), 1u);
  EXPECT_TRUE(heard[0]) << "the hash of the image tells that it is not what was wanted";
  EXPECT_TRUE(has(a, news_kind::round_done));
}

TEST_F(member_test, takes_part_without_room_for_what_comes) {
  open();
  fetch(999);
  give(1'000);
  both(run(1, 1'000));
  turn();
  EXPECT_TRUE(heard.empty());
  EXPECT_TRUE(has(b, news_kind::round_done));
  turn(3s);
  ASSERT_EQ(heard.size(), 1u);
  EXPECT_EQ(heard[0].error().code, errc::timed_out);
  ASSERT_TRUE(has(b, news_kind::declined)) << "no round must bring it now";
  EXPECT_EQ(b.said.back().moves, (std::vector<move>{{{2}, 7, 0, 0, 999}}));
}

TEST_F(member_test, holds_the_memory_of_a_round_until_it_is_over) {
  open();
  fetch(1'000);
  give(1'000);
  fabric.stall(true);
  both(run(1, 1'000));
  turn(10s); // longer than a fetch may wait for its round
  EXPECT_TRUE(heard.empty());
  const std::weak_ptr<kv_bytes> watched = into;
  const auto* at = into->data();
  into.reset();
  EXPECT_FALSE(watched.expired());
  EXPECT_TRUE(fabric.uses(at));
  turn(5s);
  ASSERT_EQ(heard.size(), 1u) << "the round is given up";
  EXPECT_FALSE(heard[0]);
  EXPECT_TRUE(watched.expired());
  EXPECT_TRUE(has(b, news_kind::failed));
  EXPECT_TRUE(b.sut.peers().empty());
}

TEST_F(member_test, ends_everything_when_a_rank_dies_inside_a_round) {
  open();
  fetch(1'000);
  b.sut.fetch(
    8, std::make_shared<kv_bytes>(5), [this](result<void> how) { heard.push_back(std::move(how)); },
    now);
  fabric.stall(true);
  both(run(1, 1'000));
  fabric.kill("device a", true);
  turn();
  ASSERT_EQ(heard.size(), 2u) << "also what waited for a later round";
  EXPECT_FALSE(heard[0] || heard[1]);
  EXPECT_TRUE(has(b, news_kind::failed));
}

TEST_F(member_test, a_failed_group_is_followed_by_another_epoch) {
  open();
  both({.kind = order_kind::abort, .epoch = 1, .why = "a test"});
  EXPECT_TRUE(a.sut.peers().empty());
  fetch(10);
  ASSERT_EQ(heard.size(), 1u) << "refused at once";
  open(2);
  both(run(1, 1'000)); // of epoch 1
  EXPECT_FALSE(has(a, news_kind::round_done)) << "old news";
}

TEST_F(member_test, refuses_a_second_round_while_one_runs) {
  open();
  fabric.stall(true);
  both(run(1, 10));
  both(run(2, 10));
  EXPECT_TRUE(has(a, news_kind::failed));
}

TEST_F(member_test, gives_up_a_group_that_does_not_form) {
  a.sut.obey({.kind = order_kind::form, .epoch = 1, .members = {{1}, {2}}, .id = "x"}, now);
  turn(44s);
  EXPECT_FALSE(has(a, news_kind::failed));
  turn(1s);
  EXPECT_TRUE(has(a, news_kind::failed));
}

TEST_F(member_test, declined_moves_end_on_both_sides) {
  open();
  fetch(10);
  give(10);
  both({.kind = order_kind::decline, .epoch = 1, .moves = {{{2}, 7, 0, 1, 10}}});
  ASSERT_EQ(heard.size(), 1u);
  EXPECT_EQ(heard[0].error().code, errc::peer_lost);
}

TEST_F(member_test, lets_go_of_what_nobody_has_fetched_in_time) {
  open();
  const auto image = std::make_shared<kv_bytes>(1'000);
  a.sut.give({2}, 7, *image, image, now);
  turn(5900ms);
  EXPECT_EQ(image.use_count(), 2);
  turn(100ms);
  EXPECT_EQ(image.use_count(), 1) << "its fetch has ended by then";
  ASSERT_TRUE(has(a, news_kind::declined)) << "no round must bring it now";
  EXPECT_EQ(a.said.back().moves, (std::vector<move>{{{2}, 7, 0, 0, 1'000}}));
}

TEST_F(member_test, holds_no_more_than_it_may_of_what_waits_to_be_sent) {
  half c{fabric, "device c", {3}};
  member sut{*c.maker, {.given_max = 3, .given_bytes_max = 1'000}};
  sut.serve({3});
  sut.obey({.kind = order_kind::form, .epoch = 1, .members = {{3}}, .id = "alone"}, now);
  sut.turn(now);
  sut.drain();
  const auto image = std::make_shared<kv_bytes>(600);
  const auto large = std::make_shared<kv_bytes>(2'000);
  const auto give = [&](std::uint64_t pull, const auto& what) {
    sut.give({2}, pull, *what, what, now);
    auto said = sut.drain();
    EXPECT_EQ(said.size(), 1u);
    EXPECT_EQ(said.at(0).moves.at(0).pull, pull);
    return said.at(0).kind;
  };
  EXPECT_EQ(give(1, large), news_kind::wanted) << "one alone may be larger";
  EXPECT_EQ(give(2, image), news_kind::declined);
  sut.turn(now += 6s);
  ASSERT_EQ(sut.drain().size(), 1u) << "the first is let go";
  EXPECT_EQ(give(3, image), news_kind::wanted);
  EXPECT_EQ(give(4, image), news_kind::declined) << "1200 of 1000 bytes";
  EXPECT_EQ(image.use_count(), 2);
  const auto small = std::make_shared<kv_bytes>(10);
  EXPECT_EQ(give(6, small), news_kind::wanted);
  EXPECT_EQ(give(7, small), news_kind::wanted);
  EXPECT_EQ(give(8, small), news_kind::declined) << "three are held";
  sut.obey({.kind = order_kind::abort, .epoch = 1, .why = "a test"}, now);
  EXPECT_EQ(image.use_count(), 1) << "all of an epoch goes with it";
  EXPECT_EQ(give(5, image), news_kind::declined) << "there is no epoch";
}

struct cast_test : member_test {
  /// Two tensors of 600 and 40 bytes, in slices of 256.
  std::shared_ptr<weight_cargo> whole() {
    for (std::size_t size : {600, 40}) {
      auto& bytes = *content.emplace_back(std::make_shared<std::vector<std::byte>>(size));
      for (std::size_t i = 0; i < size; ++i)
        bytes[i] = static_cast<std::byte>(i * 7 + size);
    }
    std::vector<tensor_info> tensors{{"a", kernels::dtype::f32, {150}, hash_bytes(*content[0])},
                                     {"b", kernels::dtype::f32, {10}, hash_bytes(*content[1])}};
    return *weight_cargo::of(tensors, {{content[0], *content[0]}, {content[1], *content[1]}}, 256);
  }
  /// Carries out what the root asks for, as the coordinator would.
  void rounds() {
    for (std::uint64_t round = 1; round < 20; ++round) {
      const auto offer = std::find_if(a.said.begin(), a.said.end(),
                                      [](const news& n) { return n.kind == news_kind::offered; });
      if (offer == a.said.end())
        return;
      const auto slices = offer->slices;
      a.said.erase(offer);
      both({.kind = order_kind::run, .epoch = 1, .round = round, .slices = slices});
      turn();
      turn();
    }
  }
  void await(std::shared_ptr<weight_cargo> into, std::uint64_t epoch = 1,
             std::uint64_t update = 3) {
    b.sut.await_weights(
      update, epoch, std::move(into), [this](result<void> how) { heard.push_back(std::move(how)); },
      now);
  }
  /// The root has all, and casts it to who awaits it. @returns what came there.
  std::shared_ptr<weight_cargo> cast_all() {
    const auto from = whole();
    std::shared_ptr<weight_cargo> to = *weight_cargo::expecting(from->tensors(), 256);
    await(to);
    a.sut.cast_weights(3, 1, from);
    turn();
    rounds();
    return to;
  }
  std::vector<std::shared_ptr<std::vector<std::byte>>> content;
};

TEST_F(cast_test, fills_the_cargos_of_those_who_wait) {
  open();
  const auto to = cast_all();
  ASSERT_EQ(heard.size(), 1u);
  EXPECT_TRUE(heard[0]) << heard[0].error().detail;
  EXPECT_TRUE(to->complete());
  const auto bytes = to->tensor("a")->bytes;
  EXPECT_TRUE(std::equal(bytes.begin(), bytes.end(), content[0]->begin(), content[0]->end()));
}

TEST_F(cast_test, leaves_to_another_way_what_the_root_does_not_have) {
  open();
  const auto all = whole();
  const std::shared_ptr<weight_cargo> from = *weight_cargo::expecting(
    all->tensors(), 256, [](const tensor_info& t) { return t.name == "a"; });
  for (std::uint32_t slice = 0; slice < 3; ++slice)
    ASSERT_TRUE(from->put(slice, all->bytes_of_slice(slice)->bytes));
  const std::shared_ptr<weight_cargo> to = *weight_cargo::expecting(all->tensors(), 256);
  await(to);
  a.sut.cast_weights(3, 1, from);
  turn();
  rounds();
  ASSERT_EQ(heard.size(), 1u);
  EXPECT_EQ(heard[0].error().code, errc::stale_epoch);
  EXPECT_TRUE(to->tensor("a")) << "that came";
  EXPECT_FALSE(to->complete());
}

TEST_F(cast_test, believes_no_bytes_of_another_hash) {
  open();
  const auto from = whole();
  const std::shared_ptr<weight_cargo> to = *weight_cargo::expecting(from->tensors(), 256);
  await(to);
  a.sut.cast_weights(3, 1, from);
  fabric.corrupt(true);
  turn();
  rounds();
  ASSERT_EQ(heard.size(), 1u);
  EXPECT_FALSE(heard[0]);
  EXPECT_FALSE(to->tensor("a"));
}

TEST_F(cast_test, goes_on_past_a_slice_that_the_root_lacks_and_leaves_it_to_another_way) {
  open();
  const auto all = whole();
  const std::shared_ptr<weight_cargo> from = *weight_cargo::expecting(all->tensors(), 256);
  const std::shared_ptr<weight_cargo> to = *weight_cargo::expecting(all->tensors(), 256);
  for (std::uint32_t slice = 1; slice < 4; ++slice) // of tensor a it lacks the first
    ASSERT_TRUE(from->put(slice, all->bytes_of_slice(slice)->bytes));
  await(to);
  a.sut.cast_weights(3, 1, from);
  both({.kind = order_kind::run, .epoch = 1, .round = 1, .slices = {3, 0, 0, 4, 640, false}});
  turn();
  EXPECT_TRUE(heard.empty()) << "there is more to come";
  EXPECT_FALSE(to->has(0)) << "zeros that nobody has sent";
  EXPECT_TRUE(to->has(1) && to->has(2)) << "and they spoil the tensor";
  EXPECT_TRUE(to->tensor("b"));
}

TEST_F(cast_test, hears_at_once_of_a_root_that_has_nothing_any_more) {
  open();
  const std::shared_ptr<weight_cargo> to = *weight_cargo::expecting(whole()->tensors(), 256);
  await(to);
  both({.kind = order_kind::run, .epoch = 1, .round = 1, .slices = {3, 0, 0, 4, 640, false}});
  turn();
  ASSERT_EQ(heard.size(), 1u);
  EXPECT_EQ(heard[0].error().code, errc::stale_epoch);
}

TEST_F(cast_test, allocates_nothing_for_sizes_that_are_not_of_the_manifest) {
  const std::array<cast, 4> wrong{{{3, 0, 0, 4, 6'400, false},
                                   {4, 0, 3, 2, 40, false},
                                   {5, 0, 0, 3, std::uint64_t{1} << 40, true},
                                   {99, 0, 0, 3, std::uint64_t{1} << 40, true}}};
  for (std::uint64_t epoch = 1; const auto& slices : wrong) {
    a.said.clear();
    b.said.clear();
    heard.clear();
    open(epoch);
    await(*weight_cargo::expecting(whole()->tensors(), 256), epoch, 2 + epoch);
    b.sut.obey({.kind = order_kind::run, .epoch = epoch, .round = 1, .slices = slices}, now);
    turn(3s); // of update 99 it knows nothing, and may hear of it yet
    ASSERT_TRUE(has(b, news_kind::failed)) << epoch;
    EXPECT_NE(b.said.back().why.find("told to cast"), std::string::npos) << b.said.back().why;
    EXPECT_EQ(heard.size(), 1u);
    ++epoch;
  }
}

TEST_F(cast_test, a_root_without_an_open_epoch_says_so_at_once) {
  open();
  await(*weight_cargo::expecting(whole()->tensors(), 256));
  a.sut.serve({1}); // the coordinator has not told the others
  a.said.clear();
  a.sut.cast_weights(3, 1, whole());
  turn();
  ASSERT_TRUE(has(a, news_kind::declined));
  EXPECT_EQ(a.said.back().slices.update, 3u);
  b.sut.obey({.kind = order_kind::decline, .epoch = 1, .slices = {.update = 3}}, now);
  ASSERT_EQ(heard.size(), 1u) << "and does not wait for ten seconds";
  EXPECT_EQ(heard[0].error().code, errc::peer_lost);
  await(*weight_cargo::expecting(whole()->tensors(), 256));
  EXPECT_EQ(heard.size(), 2u) << "nor does who hears of the update only now";
}

TEST_F(cast_test, a_root_that_forgets_an_update_says_so) {
  open();
  a.sut.cast_weights(3, 1, whole());
  a.sut.forget_weights(3);
  turn();
  EXPECT_TRUE(has(a, news_kind::declined));
}

TEST_F(cast_test, a_root_that_has_nothing_to_cast_says_so) {
  open();
  a.sut.cast_weights(3, 1, nullptr);
  turn();
  ASSERT_TRUE(has(a, news_kind::declined));
  EXPECT_EQ(a.said.back().slices.update, 3u);
}

TEST_F(cast_test, what_was_ordered_for_another_epoch_is_neither_cast_nor_waited_for) {
  open();
  both({.kind = order_kind::abort, .epoch = 1, .why = "a test"});
  open(2);
  await(*weight_cargo::expecting(whole()->tensors(), 256));
  ASSERT_EQ(heard.size(), 1u) << "its caster was of epoch 1, and casts no more";
  EXPECT_EQ(heard[0].error().detail, "epoch 1 is not open");
  a.sut.cast_weights(3, 1, whole());
  turn();
  ASSERT_TRUE(has(a, news_kind::declined));
  EXPECT_FALSE(has(a, news_kind::offered));
}

TEST_F(cast_test, waits_a_while_for_who_has_not_heard_of_the_update_yet) {
  open();
  const auto from = whole();
  const std::shared_ptr<weight_cargo> to = *weight_cargo::expecting(from->tensors(), 256);
  a.sut.cast_weights(3, 1, from);
  both({.kind = order_kind::run, .epoch = 1, .round = 1, .slices = {3, 0, 0, 4, 640, true}});
  turn(2s);
  EXPECT_FALSE(has(a, news_kind::round_done)) << "b is inside a step";
  await(to);
  turn();
  turn();
  ASSERT_EQ(heard.size(), 1u);
  EXPECT_TRUE(heard[0]) << heard[0].error().detail;
}

TEST_F(cast_test, takes_part_in_a_cast_that_it_will_not_hear_of) {
  open();
  const auto from = whole();
  a.sut.cast_weights(3, 1, from);
  both({.kind = order_kind::run, .epoch = 1, .round = 1, .slices = {3, 0, 0, 3, 600, false}});
  turn(3s);
  turn();
  EXPECT_TRUE(has(a, news_kind::round_done) && has(b, news_kind::round_done));
  b.said.clear();
  both({.kind = order_kind::run, .epoch = 1, .round = 2, .slices = {3, 0, 3, 1, 40, true}});
  turn();
  EXPECT_TRUE(has(b, news_kind::round_done)) << "not waited for twice";
  await(*weight_cargo::expecting(from->tensors(), 256));
  ASSERT_EQ(heard.size(), 1u) << "what went by does not come again";
  EXPECT_EQ(heard[0].error().code, errc::stale_epoch);
}

TEST_F(cast_test, holds_up_no_cast_of_what_it_waits_for_no_more) {
  const order more{.kind = order_kind::run, .epoch = 1, .round = 20, .slices = {3, 0, 0, 4, 640}};
  open();
  cast_all();
  ASSERT_EQ(heard.size(), 1u);
  a.said.clear();
  b.said.clear();
  both(more); // others lack more than this one did
  turn();
  EXPECT_TRUE(has(a, news_kind::round_done) && has(b, news_kind::round_done)) << "complete";
}

TEST_F(cast_test, holds_up_no_cast_of_what_it_was_told_to_wait_for_too_early) {
  both({.kind = order_kind::form, .epoch = 1, .members = {{1}, {2}}, .id = "early"});
  turn();
  await(*weight_cargo::expecting(whole()->tensors(), 256)); // before `open` is here
  ASSERT_EQ(heard.size(), 1u);
  EXPECT_FALSE(heard[0]) << "it is pulled";
  both({.kind = order_kind::open, .epoch = 1});
  a.sut.cast_weights(3, 1, whole());
  both({.kind = order_kind::run, .epoch = 1, .round = 1, .slices = {3, 0, 0, 4, 640, true}});
  turn();
  EXPECT_TRUE(has(a, news_kind::round_done) && has(b, news_kind::round_done));
}

TEST_F(cast_test, an_update_that_is_forgotten_says_nothing_of_one_with_a_smaller_number) {
  open();
  b.sut.forget_weights(4); // it was fed alone, while update 3 was under way
  const auto to = cast_all();
  ASSERT_EQ(heard.size(), 1u);
  EXPECT_TRUE(heard[0]) << heard[0].error().detail;
  for (std::uint64_t update = 3; update < 15; ++update)
    b.sut.forget_weights(update);
  await(to);
  ASSERT_EQ(heard.size(), 2u);
  EXPECT_EQ(heard[1].error().code, errc::stale_epoch) << "forgotten before the last few";
}

TEST_F(cast_test, waits_for_slices_that_the_root_gets_later_and_not_for_ever) {
  open();
  const auto all = whole();
  const std::shared_ptr<weight_cargo> from = *weight_cargo::expecting(all->tensors(), 256);
  const std::shared_ptr<weight_cargo> to = *weight_cargo::expecting(all->tensors(), 256);
  await(to);
  a.sut.cast_weights(3, 1, from);
  turn(9s);
  EXPECT_FALSE(has(a, news_kind::offered));
  for (std::uint32_t slice = 0; slice < 4; ++slice)
    ASSERT_TRUE(from->put(slice, all->bytes_of_slice(slice)->bytes));
  turn();
  EXPECT_TRUE(has(a, news_kind::offered));
  turn(1s);
  ASSERT_EQ(heard.size(), 1u) << "no round came";
  EXPECT_EQ(heard[0].error().code, errc::timed_out);
}

} // namespace
} // namespace rollcast::collective
