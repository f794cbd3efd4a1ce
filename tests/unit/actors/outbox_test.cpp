// Goal: what waits for one controller is bounded in bytes, wherever it waits, and costs nobody else
// their messages; an answer gets through where pushes no longer do.
// Method: events of a known size posted and taken, with the burdens held or let go by hand.

#include "actors/outbox.hpp"

#include <gtest/gtest.h>

#include <thread>

namespace rollcast {
namespace {

constexpr std::size_t kib = 1024;

wire::event_envelope result_of(std::size_t bytes, std::uint64_t request_id = 0) {
  wire::response_ready ready;
  ready.token_ids.resize(bytes / sizeof(token_id));
  return {request_id, std::move(ready)};
}

TEST(outbox, hands_on_what_was_posted_in_order) {
  outbox out;
  EXPECT_TRUE(out.post("a", result_of(kib)));
  EXPECT_TRUE(out.post("b", {7, wire::request_done{}}));
  const auto turn = out.take();
  ASSERT_EQ(turn.letters.size(), 2u);
  EXPECT_EQ(turn.letters[0].peer, "a");
  EXPECT_EQ(turn.letters[1].what.request_id, 7u);
  EXPECT_TRUE(turn.dropped.empty());
  EXPECT_TRUE(out.take().letters.empty());
}

TEST(outbox, takes_nothing_more_to_push_to_a_peer_that_has_its_bound) {
  outbox out{{.bytes_of_peer = 10 * kib}};
  int taken = 0;
  while (out.post("a", result_of(kib)))
    ASSERT_LT(++taken, 10);
  EXPECT_GE(taken, 8);
  EXPECT_TRUE(out.post("b", result_of(kib))) << "another peer";
  EXPECT_TRUE(out.post("a", {1, wire::request_done{}})) << "an answer";
  auto turn = out.take();
  EXPECT_EQ(turn.letters.size(), static_cast<std::size_t>(taken) + 2);
  ASSERT_EQ(turn.dropped.size(), 1u);
  EXPECT_TRUE(turn.dropped.at("a").empty()) << "nobody waits for a push";
  EXPECT_FALSE(out.post("a", result_of(kib))) << "it is on its way, wherever";
  turn.letters.clear();
  EXPECT_EQ(out.bytes_for("a"), 0u);
  EXPECT_TRUE(out.post("a", result_of(kib)));
}

TEST(outbox, charges_what_goes_past_it_up_to_the_bound) {
  outbox out{{.bytes_of_peer = 10 * kib, .bytes_of_all = 15 * kib, .bytes_of_reader = 2 * kib}};
  std::vector<outbox::burden> under_way;
  const auto charged = [&](const std::string& peer) {
    int count = 0;
    for (auto one = out.charge(peer, kib); one; one = out.charge(peer, kib), ++count)
      under_way.push_back(std::move(one));
    return count;
  };
  EXPECT_EQ(charged("a"), 10);
  EXPECT_EQ(charged("b"), 5) << "all have their bound";
  EXPECT_EQ(charged("c"), 2);
  under_way.clear();
  EXPECT_EQ(charged("a"), 10);
}

TEST(outbox, names_the_answers_that_it_drops) {
  outbox out{{.bytes_of_peer = 2 * kib}};
  std::uint64_t number = 1;
  while (out.post("a", result_of(kib, number)))
    ASSERT_LT(++number, 9u);
  EXPECT_GE(number, 4u) << "answers have twice the room";
  EXPECT_EQ(out.take().dropped.at("a"), std::vector{number});
}

TEST(outbox, takes_one_message_of_any_size) {
  outbox out{{.bytes_of_peer = kib}};
  EXPECT_TRUE(out.post("a", result_of(100 * kib)));
  EXPECT_FALSE(out.post("a", result_of(4)));
}

TEST(outbox, that_is_full_serves_those_who_read) {
  outbox out{{.bytes_of_peer = 50 * kib, .bytes_of_all = 100 * kib, .bytes_of_reader = 8 * kib}};
  for (const auto* peer : {"a", "b", "c"})
    for (int i = 0; i < 34; ++i)
      out.post(peer, result_of(kib));
  EXPECT_FALSE(out.post("a", result_of(kib))) << "below its own bound, but much";
  for (int i = 0; i < 6; ++i)
    EXPECT_TRUE(out.post("reads", result_of(kib)));
}

TEST(outbox, counts_off_on_any_thread_and_after_its_end) {
  outbox::burden last;
  {
    outbox out;
    for (int i = 0; i < 1'000; ++i)
      out.post("a", result_of(kib));
    auto turn = out.take();
    last = turn.letters[0].weight;
    std::thread{[letters = std::move(turn.letters)]() mutable { letters.clear(); }}.join();
    EXPECT_LT(out.bytes_for("a"), 2 * kib);
  }
  last.reset();
}

TEST(outbox, counts_what_is_large_in_every_kind_of_event) {
  wire::response_ready ready;
  const auto plain = bytes_of({0, ready});
  ready.prompt_token_ids.resize(100);
  ready.id = std::string(100, 'i');
  EXPECT_EQ(bytes_of({0, ready}), plain + 500);
  wire::scored scored;
  scored.rows.resize(2);
  scored.rows[1].logprobs.resize(1'000);
  EXPECT_GT(bytes_of({1, scored}), 4'000u);
}

} // namespace
} // namespace rollcast
