// Goal: requests for scores are cut into shares that keep every worker busy, each sequence gets its
// own values however they are shared out, and a request ends: with its rows or with an error that
// has the numbers, whatever becomes of the workers.
// Method: CAF's test coordinator (no threads, no sleeping) and workers that record what they are to
// score and answer when the test says so. The log-probability of a token is the token.

#include "actors/bytes.hpp"
#include "actors/error_bridge.hpp"
#include "actors/scheduler.hpp"
#include "tests/unit/actors/deterministic_system.hpp"
#include "tests/unit/actors/recording_link.hpp"

#include <algorithm>
#include <deque>
#include <memory>
#include <numeric>

namespace rollcast::test {
namespace {

using namespace std::chrono_literals;

/// An answer that a worker owes. No promise: one keeps a context that the test coordinator has for
/// one message only.
struct owed_scores {
  score_order order;
  caf::strong_actor_ptr to;
  caf::message_id id;
};

/// What a worker was asked, and the answers that it owes.
struct scorer_log {
  worker_id id;
  std::vector<score_order> orders;
  std::deque<owed_scores> open;
  std::size_t sequences() const {
    return std::accumulate(orders.begin(), orders.end(), std::size_t{0},
                           [](std::size_t n, const auto& o) { return n + o.sequences.size(); });
  }
};

std::string scores_of(const score_order& order) {
  std::vector<float> all;
  for (const auto& s : order.sequences) {
    const auto tokens = from_bytes<token_id>(s.tokens);
    for (std::size_t i = s.prompt_tokens; i < tokens.size(); ++i)
      all.push_back(static_cast<float>(tokens[i]));
  }
  return to_bytes(std::span<const float>{all});
}

decode_worker_actor::behavior_type scoring_worker(decode_worker_actor::pointer self,
                                                  scorer_log* log) {
  return {
    [](atom::decode, const chunk_assignment&) {},
    [](atom::release, worker_id, response_id, std::uint32_t) {},
    [](atom::spill, worker_id, response_id, std::uint32_t) {},
    [](atom::gone, worker_id) {},
    [](atom::gone, group_id) {},
    [self, log](atom::join, const registry_actor& scheduler) {
      worker_hello hello;
      hello.name = "scorer";
      hello.numerics = "cpu-f32-v1";
      hello.kv_blocks = hello.block_tokens = 64;
      hello.slots = 4;
      hello.context_max = 2'000;
      hello.vocabulary = 100;
      self->request(scheduler, 5s, atom::hello_v, hello).then([log](worker_id id) {
        log->id = id;
      });
    },
    [](atom::drain) {},
    [](atom::cut, worker_id, response_id, std::uint32_t) {},
    [](atom::cut, worker_id) {},
    [](atom::admit, worker_id) {},
    [](atom::prepare, const weight_order&) {},
    [](atom::redirect, worker_id, std::uint64_t, const std::string&) {},
    [](atom::cancel, worker_id, std::uint64_t) {},
    [](atom::flip, worker_id, std::uint64_t, std::uint64_t, bool) {},
    [self, log](atom::score, const score_order& order) -> caf::delegated<std::string> {
      log->orders.push_back(order);
      log->open.push_back({order, self->current_sender(), self->current_mailbox_element()->mid});
      return {};
    },
    [](const weights_pulled&) {},
    [](const weights_packed&) {},
    [](atom::step) {},
    [](caf::tick_atom) {},
    [](const export_query&) {},
    [](const pull_outcome&) {},
  };
}

struct scores : deterministic_system {
  scores() { start({}); }

  void start(const scheduler_options& options) {
    scheduler_parts parts{link, std::make_shared<scheduler_metrics>("test"),
                          std::make_shared<scheduler_pulse>()};
    sut = spawn(scheduler, parts, options);
  }

  decode_worker_actor add_worker(scorer_log& log) {
    auto worker = spawn(scoring_worker, &log);
    self->send(worker, atom::join_v, registry_actor{sut});
    settle();
    return worker;
  }

  /// `count` sequences of `tokens` tokens each, no two alike, the first of which is the prompt.
  static wire::score request_of(std::size_t count, std::size_t tokens) {
    wire::score what;
    for (std::size_t i = 0; i < count; ++i) {
      auto& s = what.sequences.emplace_back();
      s.prompt_tokens = 1;
      for (std::size_t t = 0; t < tokens; ++t)
        s.token_ids.push_back(static_cast<token_id>((i * 7 + t * 3) % 100));
    }
    return what;
  }

  void ask(wire::score what, const std::string& peer = "peer") {
    auto envelope = std::make_shared<wire::request_envelope>();
    envelope->request_id = ++requests;
    envelope->body = std::move(what);
    self->send(sut, controller_request{peer, envelope});
    settle();
  }

  /// Answers what was asked first.
  void answer_one(scorer_log& log) {
    ASSERT_FALSE(log.open.empty());
    const auto owed = log.open.front();
    log.open.pop_front();
    owed.to->enqueue(nullptr, owed.id.response_id(), caf::make_message(scores_of(owed.order)),
                     nullptr);
    settle();
  }

  void answer_all(std::initializer_list<scorer_log*> logs) {
    const auto owes = [](const scorer_log* log) { return !log->open.empty(); };
    while (std::any_of(logs.begin(), logs.end(), owes))
      for (auto* log : logs)
        if (owes(log))
          answer_one(*log);
  }

  void expect_rows(const wire::score& what) const {
    const auto all = link->of<wire::scored>();
    ASSERT_EQ(all.size(), 1u);
    ASSERT_EQ(all[0].rows.size(), what.sequences.size());
    for (std::size_t i = 0; i < what.sequences.size(); ++i) {
      const auto& s = what.sequences[i];
      EXPECT_EQ(all[0].rows[i].logprobs,
                std::vector<float>(s.token_ids.begin() + s.prompt_tokens, s.token_ids.end()))
        << "sequence " << i;
    }
  }

  std::shared_ptr<recording_link> link = std::make_shared<recording_link>();
  scheduler_actor sut;
  std::uint64_t requests = 0;
};

TEST_F(scores, come_several_at_a_time_and_each_where_it_belongs) {
  scorer_log a, b;
  add_worker(a);
  add_worker(b);
  const auto what = request_of(40, 100);
  ask(what);
  ASSERT_EQ(a.orders.size(), 2u) << "one that it scores and one that waits";
  ASSERT_EQ(b.orders.size(), 2u);
  EXPECT_EQ(a.orders[0].sequences.size(), 10u) << "as many as the 1024 tokens of a share hold";
  answer_all({&a, &b});
  expect_rows(what);
  EXPECT_EQ(a.sequences() + b.sequences(), 40u);
  EXPECT_LE(a.orders.size() + b.orders.size(), 8u);
}

TEST_F(scores, of_a_small_request_are_shared_by_all_workers) {
  scorer_log a, b;
  add_worker(a);
  add_worker(b);
  const auto what = request_of(8, 20);
  ask(what);
  EXPECT_EQ(a.sequences(), 4u);
  EXPECT_EQ(b.sequences(), 4u);
  answer_all({&b, &a});
  expect_rows(what);
}

TEST_F(scores, of_one_long_sequence_are_a_share_of_their_own) {
  scorer_log a;
  add_worker(a);
  auto what = request_of(3, 10);
  what.sequences[1] = request_of(1, 1'900).sequences[0];
  ask(what);
  answer_all({&a});
  expect_rows(what);
}

TEST_F(scores, that_a_lost_worker_had_are_made_by_another) {
  scorer_log a, b;
  const auto first = add_worker(a);
  const auto what = request_of(30, 100);
  ask(what);
  answer_one(a);
  add_worker(b);
  caf::anon_send_exit(first, caf::exit_reason::kill);
  settle();
  pass(50ms);
  answer_all({&b});
  expect_rows(what);
  EXPECT_EQ(b.sequences() + a.orders[0].sequences.size(), 30u) << "and nothing is made twice";
}

TEST_F(scores, beyond_what_may_be_in_work_are_refused_with_the_numbers) {
  scheduler_options options;
  options.scores.requests_max = 2;
  options.scores.tokens_max = 1'000;
  start(options);
  scorer_log a;
  add_worker(a);
  ask(request_of(1, 400));
  ask(request_of(2, 400));
  auto refused = link->of<wire::request_failed>();
  ASSERT_EQ(refused.size(), 1u);
  EXPECT_EQ(refused[0].code, errc::queue_full);
  EXPECT_EQ(refused[0].message,
            "a score request of 800 tokens while 1 requests with 400 tokens are in work, at most 2 "
            "and 1000 are taken; ask again when some have ended");
  ask(request_of(1, 10));
  ask(request_of(1, 10));
  EXPECT_EQ(link->of<wire::request_failed>().size(), 2u) << "two are in work";
  answer_all({&a});
  EXPECT_EQ(link->of<wire::scored>().size(), 2u);
  ask(request_of(2, 400));
  EXPECT_EQ(link->of<wire::request_failed>().size(), 2u) << "there is room again";
}

TEST_F(scores, that_nobody_makes_in_time_are_given_up_with_the_numbers) {
  scheduler_options options;
  options.scores.deadline = 10s;
  start(options);
  scorer_log a;
  const auto worker = add_worker(a);
  ask(request_of(4, 900)); // a share each, so two are given out
  answer_one(a);
  caf::anon_send_exit(worker, caf::exit_reason::kill);
  settle();
  for (int i = 0; i < 40; ++i)
    pass(200ms);
  EXPECT_TRUE(link->of<wire::request_failed>().empty()) << "a worker may still come";
  for (int i = 0; i < 20; ++i)
    pass(200ms);
  const auto failed = link->of<wire::request_failed>();
  ASSERT_EQ(failed.size(), 1u);
  EXPECT_EQ(failed[0].code, errc::timed_out);
  EXPECT_EQ(failed[0].message, "1 of 4 sequences were scored within 10 s, by 0 workers that serve "
                               "now; split the request or add workers");
  scorer_log late;
  add_worker(late);
  pass(1s);
  EXPECT_TRUE(late.orders.empty()) << "nobody waits for them any more";
}

} // namespace
} // namespace rollcast::test
