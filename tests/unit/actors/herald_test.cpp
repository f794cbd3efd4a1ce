// Goal: while a step holds a worker, the scheduler hears that it lives, and no longer than a step
// may last; it believes that of an order too which the worker has not read yet.
// Method: a herald with short times and a scheduler that only counts, on CAF's threads; then the
// real scheduler on CAF's test coordinator, with a worker that never answers.

#include "actors/herald.hpp"
#include "actors/scheduler.hpp"
#include "tests/unit/actors/deterministic_system.hpp"
#include "tests/unit/actors/recording_link.hpp"

#include <atomic>
#include <thread>

namespace rollcast::test {
namespace {

using namespace std::chrono_literals;

struct heard {
  std::atomic<std::uint64_t> count{0};
  std::atomic<std::uint64_t> update{99};
  std::atomic<std::uint64_t> worker{0};
};

registry_actor::behavior_type counting_scheduler(registry_actor::pointer, heard* what) {
  return {
    [](atom::hello, const worker_hello&) { return worker_id{1}; },
    [](atom::report, const chunk_outcome&) {},
    [](atom::moved, worker_id, response_id, std::uint32_t, std::uint64_t, bool) {},
    [](const collective::news&) {},
    [](atom::lost, worker_id, response_id, std::uint32_t) {},
    [](atom::failed, worker_id, response_id, std::uint32_t, const std::string&) {},
    [](atom::failed, worker_id, const std::string&) {},
    [](atom::beat, const worker_beat&) { return caf::ok_atom_v; },
    [what](atom::weights, const weight_news& news) {
      what->update = news.update;
      what->worker = news.worker.value;
      ++what->count;
    },
    [](atom::drain, worker_id) { return caf::ok_atom_v; },
  };
}

/// Waits up to ten seconds for the condition.
template <class Condition>
bool soon(Condition condition) {
  const auto until = std::chrono::steady_clock::now() + 10s;
  while (!condition() && std::chrono::steady_clock::now() < until)
    std::this_thread::sleep_for(1ms);
  return condition();
}

TEST(herald, speaks_while_a_step_lasts_and_no_longer_than_one_may) {
  caf::actor_system_config config;
  config.add_message_types<caf::id_block::rollcast>();
  heard what;
  caf::actor_system system{config};
  const auto scheduler = system.spawn(counting_scheduler, &what);
  herald voice{{.every = 5ms, .busy_max = 300ms}};
  voice.serve(scheduler, {7});
  std::this_thread::sleep_for(30ms);
  EXPECT_EQ(what.count, 0u) << "a worker that is not held speaks itself";
  {
    const herald::busy step{voice};
    EXPECT_TRUE(soon([&] { return what.count > 0; }));
    EXPECT_EQ(what.update, 0u) << "it has not read an order yet";
    EXPECT_EQ(what.worker, 7u);
    voice.prepares(5);
    EXPECT_TRUE(soon([&] { return what.update == 5; }));
    std::this_thread::sleep_for(400ms);
    const auto then = what.count.load();
    std::this_thread::sleep_for(50ms);
    EXPECT_EQ(what.count, then) << "no step lasts as long as this";
  }
  voice.leave();
  const auto then = what.count.load();
  const herald::busy step{voice};
  std::this_thread::sleep_for(50ms);
  EXPECT_EQ(what.count, then) << "there is nobody to speak to";
  caf::anon_send_exit(scheduler, caf::exit_reason::user_shutdown);
}

/// Registers when it is told to and never does anything.
decode_worker_actor::behavior_type mute_worker(decode_worker_actor::pointer self,
                                               std::uint64_t epoch, worker_id* id) {
  return {
    [](atom::decode, const chunk_assignment&) {},
    [](atom::release, worker_id, response_id, std::uint32_t) {},
    [](atom::spill, worker_id, response_id, std::uint32_t) {},
    [](atom::gone, worker_id) {},
    [](atom::gone, group_id) {},
    [self, epoch, id](atom::join, const registry_actor& scheduler) {
      worker_hello hello;
      hello.name = "mute";
      hello.numerics = "cpu-f32-v1";
      hello.weight_epoch = epoch;
      hello.weights_hash = {epoch, epoch};
      hello.kv_blocks = hello.block_tokens = hello.slots = 8;
      hello.context_max = hello.vocabulary = 100;
      self->request(scheduler, 5s, atom::hello_v, hello).then([id](worker_id as) { *id = as; });
    },
    [](atom::drain) {},
    [](atom::cut, worker_id, response_id, std::uint32_t) {},
    [](atom::cut, worker_id) {},
    [](atom::admit, worker_id) {},
    [](atom::prepare, const weight_order&) {},
    [](atom::redirect, worker_id, std::uint64_t, const std::string&) {},
    [](atom::cancel, worker_id, std::uint64_t) {},
    [](atom::flip, worker_id, std::uint64_t, std::uint64_t, bool) {},
    [](atom::score, const score_order&) { return std::string{}; },
    [](const weights_pulled&) {},
    [](const weights_packed&) {},
    [](atom::step) {},
    [](caf::tick_atom) {},
    [](const export_query&) {},
    [](const pull_outcome&) {},
  };
}

struct herald_of_a_worker : deterministic_system {};

TEST_F(herald_of_a_worker, is_believed_of_an_order_that_was_not_read) {
  const auto link = std::make_shared<recording_link>();
  const scheduler_parts parts{link, std::make_shared<scheduler_metrics>("test"),
                              std::make_shared<scheduler_pulse>()};
  const auto sut = spawn(scheduler, parts, scheduler_options{});
  worker_id first;
  worker_id fed;
  self->send(spawn(mute_worker, 3, &first), atom::join_v, registry_actor{sut});
  settle();
  self->send(spawn(mute_worker, 0, &fed), atom::join_v, registry_actor{sut});
  settle();
  ASSERT_NE(fed, worker_id{}) << "it serves an older epoch and was told to prepare the current one";
  const auto workers = [&] {
    auto envelope = std::make_shared<wire::request_envelope>();
    envelope->request_id = 1;
    envelope->body = wire::get_status{};
    self->send(sut, controller_request{"peer", envelope});
    settle();
    return link->of<wire::status_report>().back().workers.size();
  };
  for (int i = 0; i < 5; ++i) {
    pass(20s);
    weight_news news;
    news.worker = fed;
    self->send(sut, atom::weights_v, news);
    settle();
    EXPECT_EQ(workers(), 2u) << "round " << i;
  }
  pass(31s);
  EXPECT_EQ(workers(), 1u) << "it fell silent";
}

} // namespace
} // namespace rollcast::test
