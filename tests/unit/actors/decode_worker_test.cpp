// Goal: the worker actor runs chunks as told, serves its mailbox between two steps, takes KV over
// from a peer or computes it again, drops all work when it loses its scheduler, and registers anew.
// Method: CAF's test coordinator, a real engine over a device whose tokens betray wrong KV, a
// scheduler that only records. KV moves between two workers over loopback sockets.

#include "actors/bytes.hpp"
#include "actors/decode_worker.hpp"
#include "actors/error_bridge.hpp"
#include "tests/unit/actors/deterministic_system.hpp"
#include "tests/unit/actors/fake_backend.hpp"

#include <bit>
#include <chrono>
#include <system_error>
#include <thread>

namespace rollcast::test {
namespace {

using namespace std::chrono_literals;

struct scheduler_log {
  std::vector<weight_news> weight_news_heard;
  std::uint64_t hellos = 0;
  std::vector<chunk_outcome> outcomes;
  std::vector<std::uint64_t> moved_bytes;
  std::vector<std::string> failures;
  std::vector<std::uint32_t> lost; ///< Attempts whose KV is gone.
  std::uint64_t beats = 0;
  std::vector<worker_id> over; ///< Incarnations that a chunk came for too late.
  bool refuse = false;
  bool forget = false;
};

registry_actor::behavior_type recording_scheduler(registry_actor::pointer, scheduler_log* log) {
  return {
    [log](atom::hello, const worker_hello&) -> caf::result<worker_id> {
      if (log->refuse)
        return to_caf(errc::numerics_mismatch, "another model");
      return worker_id{++log->hellos};
    },
    [log](atom::report, const chunk_outcome& o) { log->outcomes.push_back(o); },
    [](const collective::news&) {},
    [log](atom::moved, worker_id, response_id, std::uint32_t, std::uint64_t bytes, bool) {
      log->moved_bytes.push_back(bytes);
    },
    [log](atom::failed, worker_id, response_id, std::uint32_t, const std::string& why) {
      log->failures.push_back(why);
    },
    [log](atom::failed, worker_id worker, const std::string&) { log->over.push_back(worker); },
    [log](atom::lost, worker_id, response_id, std::uint32_t attempt) {
      log->lost.push_back(attempt);
    },
    [log](atom::beat, const worker_beat&) -> caf::result<caf::ok_atom> {
      ++log->beats;
      if (log->forget)
        return to_caf(errc::peer_lost, "not registered");
      return caf::ok_atom_v;
    },
    [log](atom::weights, const weight_news& news) { log->weight_news_heard.push_back(news); },
    [](atom::drain, worker_id) { return caf::ok_atom_v; },
  };
}

struct decode_worker_test : deterministic_system {
  struct rig {
    std::shared_ptr<engine> device;
    std::shared_ptr<spill_store> spilled;
    std::unique_ptr<kv_exchange> exchange;
    std::shared_ptr<worker_pulse> pulse = std::make_shared<worker_pulse>();
    decode_worker_actor actor;
    export_query asked; ///< From the exchange's thread.
    std::atomic<bool> was_asked{false};
  };

  ~decode_worker_test() override {
    for (auto& r : rigs) {
      caf::anon_send_exit(r->actor, caf::exit_reason::user_shutdown);
      settle();
      r->exchange.reset();
      r->actor = nullptr;
    }
  }

  rig& add_worker(fake_device how = {}, std::chrono::milliseconds idle = 300ms,
                  std::uint64_t spill_bytes = 0) {
    return add_worker_with(std::make_unique<fake_backend>(how), idle, spill_bytes);
  }
  rig& add_worker_with(std::unique_ptr<backend> device, std::chrono::milliseconds idle,
                       std::uint64_t spill_bytes) {
    auto& r = *rigs.emplace_back(std::make_unique<rig>());
    r.device = std::make_shared<engine>(std::move(device), engine_limits{});
    r.spilled = *spill_store::open({spill_bytes, 0, {}}, 128);
    kv_exchange_options options;
    options.idle_ms_max = idle;
    r.exchange = *kv_exchange::open(options, [&r](const kv_request& what, const kv_ticket& ticket) {
      r.asked = {what, ticket};
      r.was_asked = true;
    });
    r.actor = spawn(decode_worker,
                    decode_worker_parts{r.device, r.spilled, nullptr, r.exchange.get(),
                                        std::make_shared<worker_metrics>("test"), r.pulse},
                    decode_worker_options{});
    link(r);
    return r;
  }

  void link(rig& r) {
    self->send(r.actor, atom::join_v, boss);
    settle();
  }

  static chunk_assignment chunk(std::uint64_t worker, std::uint32_t attempt,
                                std::vector<token_id> tokens, std::uint32_t budget) {
    chunk_assignment a;
    a.worker = {worker};
    a.response = {77};
    a.attempt = attempt;
    a.tokens = to_bytes(std::span<const token_id>{tokens});
    a.prompt_tokens = 3;
    a.sampling.max_new_tokens = 60;
    a.sampling.seed = 4;
    a.sampling.ignore_eos = true;
    a.generate_max = budget;
    return a;
  }

  /// @returns whether the worker takes it on.
  bool decode(rig& r, const chunk_assignment& a) {
    const auto refused = log.failures.size() + log.over.size();
    self->send(r.actor, atom::decode_v, a);
    settle();
    return log.failures.size() + log.over.size() == refused;
  }

  /// Delivers what other threads send, until `done` or for five seconds.
  template <class Done>
  bool settle_until(Done done) {
    const auto until = std::chrono::steady_clock::now() + 5s;
    while (!done() && std::chrono::steady_clock::now() < until) {
      settle();
      std::this_thread::sleep_for(1ms);
    }
    return done();
  }

  /// The response after `count` tokens, by one worker in one chunk.
  std::vector<token_id> truth(std::uint32_t count) {
    engine plain{std::make_unique<fake_backend>(), {}};
    chunk_request request;
    request.response = {1};
    request.tokens = prompt;
    request.prompt_tokens = 3;
    request.sampling = chunk(1, 1, prompt, count).sampling;
    request.generate_max = count;
    EXPECT_TRUE(plain.admit(request));
    auto tokens = prompt;
    while (plain.has_work())
      for (const auto& ended : plain.step())
        tokens.insert(tokens.end(), ended.tokens.begin(), ended.tokens.end());
    return tokens;
  }

  std::vector<token_id> after(const chunk_assignment& a, const chunk_outcome& o) {
    auto tokens = from_bytes<token_id>(a.tokens);
    const auto fresh = from_bytes<token_id>(o.tokens);
    tokens.insert(tokens.end(), fresh.begin(), fresh.end());
    return tokens;
  }

  const std::vector<token_id> prompt{11, 12, 13};
  scheduler_log log;
  registry_actor boss = spawn(recording_scheduler, &log);
  std::vector<std::unique_ptr<rig>> rigs;
};

/// A device that can start no thread any more.
class starved_backend final : public fake_backend {
public:
  void forward(const forward_rows&) override {
    throw std::system_error{std::make_error_code(std::errc::resource_unavailable_try_again)};
  }
};

/// CAF would end the actor alone, and leave a process that is registered nowhere (seed 106 of
/// tests/chaos).
TEST_F(decode_worker_test, ends_its_process_with_what_it_does_not_catch) {
  GTEST_FLAG_SET(death_test_style, "threadsafe"); // ZeroMQ's threads run: a fork would copy locks
  auto& w = add_worker_with(std::make_unique<starved_backend>(), 300ms, 0);
  EXPECT_DEATH((void)decode(w, chunk(1, 1, prompt, 20)), "system_error");
}

TEST_F(decode_worker_test, runs_a_chunk_to_its_edge_and_resumes_there) {
  auto& w = add_worker();
  const auto first = chunk(1, 1, prompt, 20);
  ASSERT_TRUE(decode(w, first));
  ASSERT_EQ(log.outcomes.size(), 1u);
  const auto& edge = log.outcomes[0];
  EXPECT_EQ(edge.attempt, 1u);
  EXPECT_EQ(edge.position, 0u);
  EXPECT_TRUE(edge.kv_parked);
  EXPECT_EQ(edge.kept_masses, "") << "all are 1";
  EXPECT_FALSE(w.pulse->idle);
  const auto second = chunk(1, 2, after(first, edge), 20);
  ASSERT_TRUE(decode(w, second));
  ASSERT_EQ(log.outcomes.size(), 2u);
  EXPECT_EQ(log.outcomes[1].position, 20u);
  EXPECT_EQ(after(second, log.outcomes[1]), truth(40));
  EXPECT_EQ(log.outcomes[1].stats.recomputed_tokens, 0u);
}

TEST_F(decode_worker_test, ignores_a_doubled_chunk_and_refuses_a_foreign_one) {
  auto& w = add_worker();
  ASSERT_TRUE(decode(w, chunk(1, 1, prompt, 20)));
  ASSERT_TRUE(decode(w, chunk(1, 1, prompt, 20)));
  EXPECT_EQ(log.outcomes.size(), 1u);
  EXPECT_FALSE(decode(w, chunk(9, 2, prompt, 20)));
  EXPECT_EQ(log.over, std::vector{worker_id{9}});
  EXPECT_EQ(log.outcomes.size(), 1u);
}

TEST_F(decode_worker_test, says_what_it_cannot_admit_and_keeps_nothing_of_it) {
  fake_device small;
  small.kv_blocks = 2;
  auto& w = add_worker(small);
  EXPECT_FALSE(decode(w, chunk(1, 1, prompt, 60)));
  auto bad = chunk(1, 1, prompt, 5);
  bad.sampling.temperature = -1;
  EXPECT_FALSE(decode(w, bad));
  EXPECT_EQ(log.failures.size(), 2u);
  EXPECT_TRUE(w.pulse->idle);
  EXPECT_EQ(w.device->kv().free, 2u);
}

TEST_F(decode_worker_test, drops_what_is_released_unless_a_later_attempt_runs) {
  auto& w = add_worker();
  ASSERT_TRUE(decode(w, chunk(1, 3, prompt, 20)));
  ASSERT_TRUE(w.device->parked({77}));
  self->send(w.actor, atom::release_v, worker_id{1}, response_id{77}, std::uint32_t{2});
  self->send(w.actor, atom::release_v, worker_id{5}, response_id{77}, std::uint32_t{9});
  settle();
  EXPECT_TRUE(w.device->parked({77}));
  self->send(w.actor, atom::release_v, worker_id{1}, response_id{77}, std::uint32_t{3});
  settle();
  EXPECT_FALSE(w.device->parked({77}));
  EXPECT_TRUE(w.pulse->idle);
}

TEST_F(decode_worker_test, spills_kv_out_of_its_blocks_and_resumes_from_there) {
  auto& w = add_worker({}, 300ms, 1 << 20);
  const auto first = chunk(1, 1, prompt, 20);
  ASSERT_TRUE(decode(w, first));
  const auto all = w.device->kv().total;
  self->send(w.actor, atom::spill_v, worker_id{1}, response_id{77}, std::uint32_t{0});
  self->send(w.actor, atom::spill_v, worker_id{9}, response_id{77}, std::uint32_t{1});
  settle();
  EXPECT_TRUE(w.device->parked({77})) << "another attempt's order, and another incarnation's";
  for (int twice = 0; twice < 2; ++twice)
    self->send(w.actor, atom::spill_v, worker_id{1}, response_id{77}, std::uint32_t{1});
  settle();
  EXPECT_EQ(w.device->kv().free, all);
  EXPECT_TRUE(w.spilled->holds({77}));
  EXPECT_FALSE(w.pulse->idle) << "peers may want it";
  const auto second = chunk(1, 2, after(first, log.outcomes.at(0)), 20);
  ASSERT_TRUE(decode(w, second));
  ASSERT_EQ(log.outcomes.size(), 2u);
  EXPECT_EQ(after(second, log.outcomes[1]), truth(40));
  EXPECT_EQ(log.outcomes[1].stats.recomputed_tokens, 0u);
  EXPECT_FALSE(w.spilled->holds({77}));
  EXPECT_TRUE(log.lost.empty());
}

TEST_F(decode_worker_test, gives_spilled_kv_to_a_peer_and_drops_it_when_released) {
  auto& source = add_worker({}, 300ms, 1 << 20);
  auto& target = add_worker();
  const auto first = chunk(1, 1, prompt, 20);
  ASSERT_TRUE(decode(source, first));
  self->send(source.actor, atom::spill_v, worker_id{1}, response_id{77}, std::uint32_t{1});
  auto second = chunk(2, 2, after(first, log.outcomes.at(0)), 20);
  second.pull_endpoint = source.exchange->endpoint();
  second.pull_from = {1};
  ASSERT_TRUE(decode(target, second));
  ASSERT_TRUE(settle_until([&] { return source.was_asked.load(); }));
  self->send(source.actor, source.asked);
  ASSERT_TRUE(settle_until([&] { return log.outcomes.size() == 2; }));
  EXPECT_EQ(after(second, log.outcomes[1]), truth(40));
  EXPECT_EQ(log.outcomes[1].stats.recomputed_tokens, 0u);
  EXPECT_TRUE(source.spilled->holds({77})) << "the source keeps it until it is released";
  self->send(source.actor, atom::release_v, worker_id{1}, response_id{77}, std::uint32_t{1});
  settle();
  EXPECT_FALSE(source.spilled->holds({77}));
  EXPECT_TRUE(source.pulse->idle);
}

TEST_F(decode_worker_test, says_when_it_cannot_keep_what_it_is_told_to_spill) {
  auto& w = add_worker({}, 300ms, 100); // less than a page
  const auto first = chunk(1, 1, prompt, 20);
  ASSERT_TRUE(decode(w, first));
  self->send(w.actor, atom::spill_v, worker_id{1}, response_id{77}, std::uint32_t{1});
  settle();
  EXPECT_EQ(log.lost, std::vector{1u});
  EXPECT_EQ(w.device->kv().free, w.device->kv().total) << "others were promised the room";
  const auto second = chunk(1, 2, after(first, log.outcomes.at(0)), 20);
  ASSERT_TRUE(decode(w, second));
  EXPECT_EQ(after(second, log.outcomes.at(1)), truth(40));
  EXPECT_GT(log.outcomes[1].stats.recomputed_tokens, 0u);
}

TEST_F(decode_worker_test, scores_where_what_is_parked_lay_if_that_makes_room) {
  fake_device how;
  how.kv_blocks = 4;
  auto& w = add_worker(how);
  const auto first = chunk(1, 1, prompt, 20);
  ASSERT_TRUE(decode(w, first));
  ASSERT_TRUE(w.device->parked({77}));
  const auto score = [&](std::size_t tokens) {
    const std::vector<token_id> all(tokens, 11);
    auto answer = self->request(
      w.actor, 5s, atom::score_v,
      score_order{{1}, 0, {{to_bytes(std::span{all}), 1, std::bit_cast<std::uint32_t>(1.0f)}}});
    settle();
    errc said = errc::ok;
    answer.receive([](const std::string&) {}, [&](const caf::error& why) { said = code_of(why); });
    return said;
  };
  const std::size_t most = how.kv_blocks * how.block_tokens + 1; // the last is only looked up
  EXPECT_EQ(score(most + 1), errc::out_of_kv_blocks);
  EXPECT_EQ(log.lost, std::vector<std::uint32_t>{}) << "it would not help";
  EXPECT_EQ(score(most), errc::ok);
  EXPECT_EQ(log.lost, std::vector{1u}) << "the scheduler knows that it must be computed again";
  EXPECT_FALSE(w.device->parked({77}));
  const auto second = chunk(1, 2, after(first, log.outcomes.at(0)), 20);
  ASSERT_TRUE(decode(w, second));
  EXPECT_EQ(after(second, log.outcomes.at(1)), truth(40));
}

TEST_F(decode_worker_test, takes_kv_over_from_a_peer) {
  auto& source = add_worker();
  auto& target = add_worker();
  const auto first = chunk(1, 1, prompt, 20);
  ASSERT_TRUE(decode(source, first));
  auto second = chunk(2, 2, after(first, log.outcomes.at(0)), 20);
  second.pull_endpoint = source.exchange->endpoint();
  second.pull_from = {1};
  ASSERT_TRUE(decode(target, second));
  ASSERT_TRUE(settle_until([&] { return source.was_asked.load(); }));
  self->send(source.actor, source.asked);
  ASSERT_TRUE(settle_until([&] { return log.outcomes.size() == 2; }));
  EXPECT_EQ(after(second, log.outcomes[1]), truth(40));
  EXPECT_EQ(log.outcomes[1].stats.recomputed_tokens, 0u);
  EXPECT_EQ(log.moved_bytes, std::vector<std::uint64_t>{2 * 128}) << "two groups of 16 positions";
  EXPECT_TRUE(source.device->parked({77})) << "the source keeps it until it is released";
}

TEST_F(decode_worker_test, computes_again_what_a_peer_does_not_give) {
  auto& source = add_worker();
  auto& target = add_worker();
  const auto first = chunk(1, 1, prompt, 20);
  ASSERT_TRUE(decode(source, first));
  auto second = chunk(2, 2, after(first, log.outcomes.at(0)), 20);
  second.pull_endpoint = source.exchange->endpoint();
  second.pull_from = {42}; // an incarnation that is no more
  ASSERT_TRUE(decode(target, second));
  ASSERT_TRUE(settle_until([&] { return source.was_asked.load(); }));
  self->send(source.actor, source.asked);
  ASSERT_TRUE(settle_until([&] { return log.outcomes.size() == 2; }));
  EXPECT_EQ(after(second, log.outcomes[1]), truth(40));
  EXPECT_GT(log.outcomes[1].stats.recomputed_tokens, 0u);
  EXPECT_TRUE(log.moved_bytes.empty());
}

TEST_F(decode_worker_test, does_not_wait_for_a_holder_that_is_lost) {
  auto& silent = add_worker();
  auto& target = add_worker({}, 60s);
  auto a = chunk(2, 1, prompt, 40);
  a.pull_endpoint = silent.exchange->endpoint();
  a.pull_from = {1};
  ASSERT_TRUE(decode(target, a));
  self->send(target.actor, atom::gone_v, worker_id{5});
  settle();
  EXPECT_EQ(target.exchange->counts().pulls_failed.load(), 0u) << "another one";
  self->send(target.actor, atom::gone_v, worker_id{1});
  ASSERT_TRUE(settle_until([&] { return log.outcomes.size() == 1; }));
  EXPECT_EQ(after(a, log.outcomes[0]), truth(40));
}

TEST_F(decode_worker_test, drops_a_pull_that_is_released) {
  auto& silent = add_worker();
  auto& target = add_worker();
  auto a = chunk(2, 1, prompt, 20);
  a.pull_endpoint = silent.exchange->endpoint();
  a.pull_from = {1};
  ASSERT_TRUE(decode(target, a));
  EXPECT_FALSE(target.pulse->idle);
  self->send(target.actor, atom::release_v, worker_id{2}, response_id{77}, std::uint32_t{1});
  ASSERT_TRUE(settle_until([&] { return target.exchange->counts().pulls_failed.load() == 1; }));
  settle();
  EXPECT_TRUE(target.pulse->idle);
  EXPECT_TRUE(log.outcomes.empty());
}

TEST_F(decode_worker_test, reports_a_cut_chunk_as_an_edge_that_another_worker_goes_on_from) {
  auto& w = add_worker();
  const auto first = chunk(1, 1, prompt, 50);
  self->send(w.actor, atom::decode_v, first);
  while (w.device->stats().generated_tokens < 7)
    ASSERT_TRUE(sched.try_run_once());
  self->send(w.actor, atom::cut_v, worker_id{9}); // another incarnation's
  self->send(w.actor, atom::cut_v, worker_id{1});
  settle();
  ASSERT_EQ(log.outcomes.size(), 1u);
  const auto& edge = log.outcomes[0];
  EXPECT_EQ(static_cast<chunk_end>(edge.why), chunk_end::budget);
  EXPECT_TRUE(edge.kv_parked);
  const auto done = from_bytes<token_id>(edge.tokens).size();
  EXPECT_GE(done, 7u);
  EXPECT_LT(done, 50u);
  auto& other = add_worker();
  const auto second = chunk(2, 2, after(first, edge), static_cast<std::uint32_t>(50 - done));
  ASSERT_TRUE(decode(other, second));
  EXPECT_EQ(after(second, log.outcomes.at(1)), truth(50));
}

TEST_F(decode_worker_test, gives_a_chunk_back_whose_kv_has_not_come_when_it_is_cut) {
  auto& w = add_worker();
  const auto silent = kv_exchange::open({}, [](const kv_request&, const kv_ticket&) {});
  auto a = chunk(1, 1, prompt, 20);
  a.pull_endpoint = (*silent)->endpoint();
  a.pull_from = {5};
  ASSERT_TRUE(decode(w, a));
  EXPECT_FALSE(w.pulse->idle);
  self->send(w.actor, atom::cut_v, worker_id{}); // the node's own
  settle();
  ASSERT_EQ(log.outcomes.size(), 1u);
  EXPECT_EQ(log.outcomes[0].tokens, "");
  EXPECT_FALSE(log.outcomes[0].kv_parked);
  EXPECT_TRUE(w.pulse->idle);
  std::this_thread::sleep_for(20ms); // for news of the pull that was cancelled
  settle();
  EXPECT_EQ(log.outcomes.size(), 1u);
  EXPECT_TRUE(log.failures.empty());
}

TEST_F(decode_worker_test, forgets_all_work_when_the_scheduler_is_gone_and_registers_anew) {
  auto& w = add_worker();
  ASSERT_TRUE(decode(w, chunk(1, 1, prompt, 20)));
  EXPECT_EQ(w.pulse->link(), link_state::up);
  caf::anon_send_exit(boss, caf::exit_reason::kill);
  settle();
  EXPECT_EQ(w.pulse->link(), link_state::down);
  EXPECT_TRUE(w.pulse->idle);
  EXPECT_EQ(w.device->kv().free, w.device->kv().total);
  boss = spawn(recording_scheduler, &log);
  link(w);
  EXPECT_EQ(w.pulse->link(), link_state::up);
  EXPECT_EQ(log.hellos, 2u);
}

TEST_F(decode_worker_test, registers_anew_when_a_beat_is_not_known) {
  auto& w = add_worker();
  pass(200ms);
  EXPECT_GT(log.beats, 0u);
  log.forget = true;
  pass(200ms);
  EXPECT_EQ(w.pulse->link(), link_state::down);
}

TEST_F(decode_worker_test, tells_its_node_when_it_is_refused) {
  log.refuse = true;
  auto& w = add_worker();
  EXPECT_EQ(w.pulse->link(), link_state::refused);
  ASSERT_TRUE(w.pulse->why());
  EXPECT_EQ(w.pulse->why()->code, errc::numerics_mismatch);
  EXPECT_EQ(w.pulse->why()->detail, "another model");
}

} // namespace
} // namespace rollcast::test
