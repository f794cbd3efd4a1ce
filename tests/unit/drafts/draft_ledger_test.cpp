// Goal: a worker sends what its responses write once, in small batches, and again whatever the
// server lacks; its drafter gets every sibling's tokens in order, each once.
// Method: a ledger and a board talk by hand, on a clock of the test, over a wire that eats frames.

#include "cluster/drafts/draft_board.hpp"
#include "cluster/drafts/draft_ledger.hpp"
#include "engine/base/prng.hpp"

#include <gtest/gtest.h>

#include <array>
#include <memory>

namespace rollcast {
namespace {

using namespace std::chrono_literals;
using tokens = std::vector<token_id>;

constexpr group_id group{3};
constexpr draft_group name{7};
const draft_ledger::time start = draft_ledger::time{} + 1h;

/// A ledger with what it sent and handed over.
struct worker {
  draft_ledger it{draft_ledger_limits{.vocabulary = 1'000}};
  std::vector<draft_frame> sent;
  std::vector<heard_tokens> heard;
  bool connected = true;
  bool room = true;

  draft_ledger::send_function send() {
    return [this](const draft_frame& frame) {
      if (connected)
        sent.push_back(frame);
      return connected;
    };
  }
  void take(const draft_frame& frame, draft_ledger::time now) {
    it.take(frame, now, send(), [this](heard_tokens h) {
      if (room)
        heard.push_back(std::move(h));
      return room;
    });
  }
  /// What is sent at a moment, `follow` left out.
  std::vector<draft_frame> flush(draft_ledger::time now) {
    EXPECT_EQ(it.flush(now, send()), connected);
    auto all = std::exchange(sent, {});
    std::erase_if(all, [](const auto& f) { return f.kind == draft_message::follow; });
    return all;
  }
};

draft_frame said(std::uint64_t response, std::uint32_t position, tokens what,
                 std::uint64_t incarnation = 42) {
  draft_frame frame{.kind = draft_message::tokens,
                    .incarnation = incarnation,
                    .group = name,
                    .response = {response}};
  frame.position = position;
  frame.tokens = std::move(what);
  return frame;
}

TEST(draft_ledger, sends_64_tokens_at_once_and_fewer_after_20_ms) {
  worker w;
  w.it.follow(group, name, {1}, tokens{1, 2, 3}, start);
  EXPECT_TRUE(w.flush(start + 19ms).empty());
  auto sent = w.flush(start + 20ms);
  ASSERT_EQ(sent.size(), 1u);
  EXPECT_EQ(sent[0].position, 0u);
  EXPECT_EQ(sent[0].tokens, (tokens{1, 2, 3}));
  EXPECT_EQ(sent[0].age_us, 20'000u);
  w.it.wrote(name, {1}, 3, tokens(63, 9), start + 30ms);
  EXPECT_TRUE(w.flush(start + 31ms).empty());
  EXPECT_TRUE(w.it.waiting());
  w.it.wrote(name, {1}, 66, tokens(1, 9), start + 32ms);
  sent = w.flush(start + 32ms);
  ASSERT_EQ(sent.size(), 1u);
  EXPECT_EQ(sent[0].position, 3u);
  EXPECT_EQ(sent[0].tokens.size(), 64u);
  EXPECT_EQ(sent[0].age_us, 2'000u);
  EXPECT_FALSE(w.it.waiting());
}

TEST(draft_ledger, sends_no_more_than_a_frame_a_millisecond_however_many_write) {
  worker w;
  for (std::uint64_t id = 1; id <= 100; ++id)
    w.it.follow(group, name, {id}, tokens{1, 2, 3}, start);
  EXPECT_TRUE(w.flush(start + 99ms).empty());
  EXPECT_EQ(w.flush(start + 100ms).size(), 100u);
}

TEST(draft_ledger, keeps_what_cannot_be_sent_until_it_can) {
  worker w;
  w.connected = false;
  w.it.follow(group, name, {1}, tokens{1, 2, 3}, start);
  EXPECT_TRUE(w.flush(start + 1s).empty());
  w.it.wrote(name, {1}, 3, tokens{4}, start + 2s);
  EXPECT_TRUE(w.it.waiting());
  w.connected = true;
  w.it.flush(start + 3s, w.send());
  ASSERT_EQ(w.sent.size(), 2u);
  EXPECT_EQ(w.sent[0].kind, draft_message::follow) << "the server is told of the group first";
  EXPECT_EQ(w.sent[1].tokens, (tokens{1, 2, 3, 4}));
}

TEST(draft_ledger, does_not_repeat_what_another_worker_has_sent) {
  worker w;
  w.it.follow(group, name, {1}, tokens{1}, start);
  w.flush(start + 1s);
  w.take(said(2, 0, {1, 2, 3}), start + 1s);
  w.it.follow(group, name, {2}, tokens{1, 2, 3, 4}, start + 1s); // it moved here
  const auto sent = w.flush(start + 2s);
  ASSERT_EQ(sent.size(), 1u);
  EXPECT_EQ(sent[0].position, 3u);
  EXPECT_EQ(sent[0].tokens, (tokens{4}));
}

TEST(draft_ledger, leaves_out_what_does_not_continue) {
  worker w;
  w.it.follow(group, name, {1}, tokens{1, 2}, start);
  w.it.wrote(name, {1}, 5, tokens{9}, start);
  w.it.wrote(name, {2}, 0, tokens{9}, start);
  w.it.wrote({99}, {1}, 0, tokens{9}, start);
  w.it.wrote(name, {1}, 1, tokens{2, 3}, start);
  const auto sent = w.flush(start + 1s);
  ASSERT_EQ(sent.size(), 1u);
  EXPECT_EQ(sent[0].tokens, (tokens{1, 2, 3}));
}

TEST(draft_ledger, hands_over_in_order_and_wants_what_is_missing) {
  worker w;
  w.it.follow(group, name, {1}, tokens{1}, start);
  w.flush(start);
  w.take(said(2, 0, {1, 2}), start);
  w.take(said(2, 1, {2, 3}), start);
  w.take(said(2, 5, {6}), start);
  w.take(said(2, 6, {7}), start + 10ms);
  ASSERT_EQ(w.heard.size(), 2u);
  EXPECT_EQ(w.heard[1].group, group);
  EXPECT_EQ(w.heard[1].position, 2u);
  EXPECT_EQ(w.heard[1].tokens, (tokens{3}));
  ASSERT_EQ(w.sent.size(), 1u) << "asked for once";
  EXPECT_EQ(w.sent[0].kind, draft_message::want);
  EXPECT_EQ(w.sent[0].position, 3u);
  w.take(said(2, 3, {4, 5, 6, 7}), start + 20ms);
  EXPECT_EQ(w.heard[2].tokens, (tokens{4, 5, 6, 7}));
  EXPECT_EQ(w.it.figures().gaps_repaired, 1u);
}

TEST(draft_ledger, lets_no_token_through_that_the_model_does_not_have) {
  worker w;
  w.it.follow(group, name, {1}, tokens{1}, start);
  w.take(said(2, 0, {1, 1'000}), start);
  w.take(said(2, 0, {1, 0x7fff'ffff}), start);
  EXPECT_TRUE(w.heard.empty());
  EXPECT_EQ(w.it.figures().rejected, 2u);
  w.take(said(2, 0, {1, 999}), start);
  EXPECT_EQ(w.heard.size(), 1u);
}

TEST(draft_ledger, says_again_what_its_drafter_lacks) {
  worker w;
  w.it.follow(group, name, {1}, tokens{1}, start);
  w.room = false;
  w.take(said(2, 0, {1, 2, 3}), start);
  w.room = true;
  w.take(said(3, 0, {1, 2, 3}), start);
  w.it.lost(name, {3}, 1, start);
  w.it.flush(start, w.send());
  ASSERT_EQ(w.sent.size(), 1u);
  EXPECT_EQ(w.sent[0].ends[1].known, draft_position_max) << "not now: there is no room";
  EXPECT_EQ(w.sent[0].ends[2].known, draft_position_max);
  w.take(said(2, 7, {1}), start + 500ms);
  w.take(said(3, 7, {1}), start + 500ms);
  EXPECT_EQ(w.sent.size(), 1u) << "a gap that is not asked for";
  w.sent.clear();
  w.it.flush(start + 11s, w.send());
  ASSERT_FALSE(w.sent.empty());
  EXPECT_EQ(w.sent[0].ends, (std::vector<draft_extent>{{{1}, 1, 0}, {{2}, 0, 0}, {{3}, 1, 0}}));
}

TEST(draft_ledger, tells_a_new_server_everything) {
  worker w;
  w.it.follow(group, name, {1}, tokens{1, 2, 3}, start);
  w.flush(start + 1s);
  w.take(said(2, 0, {1, 2}, 42), start + 1s);
  EXPECT_TRUE(w.flush(start + 1s).empty());
  w.take({.kind = draft_message::unknown, .incarnation = 43, .group = name}, start + 1001ms);
  w.it.flush(start + 1002ms, w.send());
  ASSERT_EQ(w.sent.size(), 2u);
  EXPECT_EQ(w.sent[0].kind, draft_message::follow);
  EXPECT_EQ(w.sent[1].tokens, (tokens{1, 2, 3}));
  EXPECT_EQ(w.sent[1].age_us, draft_age_replayed);
}

TEST(draft_ledger, tries_nothing_more_once_a_frame_is_refused) {
  worker w;
  for (std::uint64_t g = 1; g <= 100; ++g)
    w.it.follow({g}, {g}, {g}, tokens(100, 5), start);
  int tried = 0;
  int taken = 0;
  EXPECT_FALSE(w.it.flush(start + 1s, [&](const auto&) { return ++tried, false; }));
  EXPECT_EQ(tried, 1);
  EXPECT_FALSE(w.it.flush(start + 1s, [&](const auto&) { return ++taken <= 150; }));
  EXPECT_EQ(taken, 151);
  EXPECT_TRUE(w.it.flush(start + 1s, w.send()));
  EXPECT_EQ(w.sent.size(), 50u) << "the rest, and nothing twice";
}

TEST(draft_ledger, remembers_no_group_that_ended_while_nothing_could_be_sent) {
  worker w;
  w.connected = false;
  w.it.follow(group, name, {1}, tokens{1}, start);
  w.it.leave(name, {1}, start);
  EXPECT_FALSE(w.it.flush(start + 31s, w.send()));
  EXPECT_FALSE(w.it.waiting()) << "the group is forgotten";
  w.connected = true;
  EXPECT_TRUE(w.flush(start + 32s).empty()) << "the server forgets a silent follower by itself";
}

TEST(draft_ledger, follows_what_runs_here_however_long_it_writes_nothing) {
  worker w;
  w.it.follow(group, name, {1}, tokens{1}, start);
  w.it.follow(group, name, {2}, tokens{1}, start);
  w.flush(start + 1s);
  w.it.leave(name, {1}, start + 2s);
  w.it.leave(name, {1}, start + 2s); // said twice, and of nobody
  w.it.leave(name, {9}, start + 2s);
  w.it.leave({99}, {1}, start + 2s);
  EXPECT_TRUE(w.flush(start + 600s).empty());
  w.it.leave(name, {2}, start + 600s);
  EXPECT_TRUE(w.flush(start + 630s).empty());
  ASSERT_EQ(w.flush(start + 631s).size(), 1u);
}

TEST(draft_ledger, unfollows_what_has_not_run_here_for_a_while) {
  worker w;
  w.it.follow(group, name, {1}, tokens{1}, start);
  w.flush(start + 1s);
  w.it.leave(name, {1}, start);
  EXPECT_TRUE(w.flush(start + 30s).empty());
  const auto sent = w.flush(start + 31s);
  ASSERT_EQ(sent.size(), 1u);
  EXPECT_EQ(sent[0].kind, draft_message::unfollow);
  w.take(said(2, 0, {1, 2}), start + 32s);
  EXPECT_TRUE(w.heard.empty());
}

TEST(draft_ledger, keeps_a_bounded_number_of_tokens) {
  worker w;
  w.it = draft_ledger{{.vocabulary = 1'000, .tokens_max = 1'000}};
  for (std::uint64_t g = 1; g <= 20; ++g)
    w.it.follow({g}, {g}, {g}, tokens(100, 5), start + std::chrono::milliseconds{g});
  std::size_t followed = 0;
  w.it.flush(start + 1s, w.send());
  for (const auto& frame : w.sent)
    followed += frame.kind == draft_message::follow ? 1 : 0;
  EXPECT_EQ(followed, 10u);
}

/// Two workers and a server that may lose its memory, over wires that eat one frame in `loss`.
class play {
public:
  explicit play(unsigned loss) : loss_(loss) {}

  void step(draft_ledger::time now) {
    for (std::size_t i = 0; i < 2; ++i) {
      workers[i].it.flush(now, workers[i].send());
      for (const auto& frame : std::exchange(workers[i].sent, {}))
        if (arrives())
          board->take(std::to_string(i), frame, now);
      for (const auto& letter : std::exchange(board->outbox, {}))
        for (const auto& to : letter.to)
          if (arrives())
            workers[to == "0" ? 0 : 1].take(letter.frame, now);
    }
    board->expire(now);
  }
  bool arrives() { return random.below(loss_) != 0; }

  prng random{20261121};
  std::array<worker, 2> workers;
  std::unique_ptr<draft_board> board = std::make_unique<draft_board>(draft_board_limits{}, 1);

private:
  unsigned loss_;
};

TEST(draft_ledger, everything_arrives_in_order_over_wires_that_eat_frames) {
  play p{4};
  std::array<tokens, 2> text{tokens{1, 2}, tokens{1, 2}};
  auto now = start;
  for (std::size_t i = 0; i < 2; ++i)
    p.workers[i].it.follow(group, name, {i + 1}, text[i], now);
  for (int round = 0; round < 2'000; ++round) {
    now += 5ms;
    for (std::size_t i = 0; i < 2 && round < 1'500; ++i) {
      const tokens more(1 + p.random.below(3), static_cast<token_id>(p.random.below(1'000)));
      const auto at = static_cast<std::uint32_t>(text[i].size());
      text[i].insert(text[i].end(), more.begin(), more.end());
      p.workers[i].it.wrote(name, {i + 1}, at, more, now);
    }
    if (round == 700)
      p.board = std::make_unique<draft_board>(draft_board_limits{}, 2);
    p.step(now);
  }
  for (std::size_t i = 0; i < 2; ++i) {
    tokens heard;
    for (const auto& h : p.workers[i].heard) {
      EXPECT_EQ(h.response, response_id{2 - i});
      ASSERT_EQ(h.position, heard.size());
      heard.insert(heard.end(), h.tokens.begin(), h.tokens.end());
    }
    EXPECT_EQ(heard, text[1 - i]);
    EXPECT_GT(p.workers[i].it.figures().gaps_repaired, 10u);
  }
}

} // namespace
} // namespace rollcast
