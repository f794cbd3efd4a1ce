#pragma once

#include "actors/bytes.hpp"
#include "actors/durable_link.hpp"
#include "actors/error_bridge.hpp"
#include "actors/scheduler.hpp"
#include "engine/base/prng.hpp"
#include "tests/support/journal_fold.hpp"
#include "tests/unit/actors/deterministic_system.hpp"

#include <map>
#include <vector>

namespace rollcast::test {

using namespace std::chrono_literals;
constexpr token_id eos = 0;

inline worker_hello plain_hello() {
  worker_hello hello;
  hello.name = "reckoner";
  hello.host = "here";
  hello.data_endpoint = "tcp://127.0.0.1:1";
  hello.numerics = "cpu-f32-v1";
  hello.weights_hash = {1, 0};
  hello.kv_blocks = 64;
  hello.block_tokens = 16;
  hello.slots = 4;
  hello.kv_bytes_per_token = 8;
  hello.context_max = 1'000;
  hello.vocabulary = 100;
  const std::vector<token_id> ids{eos};
  hello.eos_token_ids = to_bytes(std::span<const token_id>{ids});
  return hello;
}

/// What a worker was told.
struct worker_log {
  worker_id id;
  errc refused = errc::ok;
  bool admitted = false;
  bool mute = false; ///< Reports nothing.
  std::size_t chunks = 0;
  std::vector<std::uint64_t> flips;
  std::vector<std::uint64_t> prepared; ///< Update numbers.
  std::vector<std::string> upstreams;
};

/// A worker whose tokens are a function of seed and position, and so of nothing else.
struct reckoner_state {
  reckoner_state() = default; // no aggregate, which CAF would make of a pointer
  registry_actor scheduler;
  worker_hello hello;
};
using reckoner_pointer = decode_worker_actor::stateful_pointer<reckoner_state>;

inline chunk_outcome reckon(const chunk_assignment& a, std::uint64_t epoch) {
  chunk_outcome o;
  o.worker = a.worker;
  o.epoch = epoch;
  o.response = a.response;
  o.attempt = a.attempt;
  const auto size = static_cast<std::uint32_t>(a.tokens.size() / sizeof(token_id));
  o.position = size - a.prompt_tokens;
  std::vector<token_id> tokens;
  std::vector<float> logprobs;
  auto why = chunk_end::budget;
  while (tokens.size() < a.generate_max) {
    const auto position = o.position + tokens.size();
    prng dice{a.sampling.seed ^ (position << 32)};
    tokens.push_back(static_cast<token_id>(dice.below(30)));
    logprobs.push_back(-static_cast<float>(dice.below(1'000)) / 64);
    if (tokens.back() == eos) {
      why = chunk_end::stop;
      break;
    }
    if (position + 1 == a.sampling.max_new_tokens) {
      why = chunk_end::length;
      break;
    }
  }
  o.tokens = to_bytes(std::span<const token_id>{tokens});
  o.logprobs = to_bytes(std::span<const float>{logprobs});
  o.why = static_cast<std::uint8_t>(why);
  o.kv_parked = why == chunk_end::budget;
  return o;
}

inline decode_worker_actor::behavior_type reckoner(reckoner_pointer self, worker_log* log,
                                                   worker_hello hello) {
  self->state.hello = std::move(hello);
  return {
    [log, self](atom::decode, const chunk_assignment& a) {
      if (a.worker != log->id)
        return self->send(self->state.scheduler, atom::failed_v, a.worker,
                          std::string{"another incarnation"});
      ++log->chunks;
      if (!log->mute)
        self->send(self->state.scheduler, atom::report_v,
                   reckon(a, self->state.hello.weight_epoch));
    },
    [](atom::release, worker_id, response_id, std::uint32_t) {},
    [](atom::spill, worker_id, response_id, std::uint32_t) {},
    [](atom::gone, worker_id) {},
    [](atom::gone, group_id) {},
    [self, log](atom::join, const registry_actor& scheduler) {
      self->state.scheduler = scheduler;
      log->admitted = false;
      self->request(scheduler, 5s, atom::hello_v, self->state.hello)
        .then([log](worker_id id) { log->id = id; },
              [log](const caf::error& why) { log->refused = code_of(why); });
    },
    [](atom::drain) {},
    [](atom::cut, worker_id, response_id, std::uint32_t) {},
    [](atom::cut, worker_id) {},
    [log](atom::admit, worker_id) { log->admitted = true; },
    [log](atom::prepare, const weight_order& order) { log->prepared.push_back(order.update); },
    [](atom::redirect, worker_id, std::uint64_t, const std::string&) {},
    [](atom::cancel, worker_id, std::uint64_t) {},
    [log](atom::flip, worker_id, std::uint64_t, std::uint64_t epoch, bool) {
      log->flips.push_back(epoch);
    },
    [](atom::score, const score_order&) { return std::string{}; },
    [](const weights_pulled&) {},
    [](const weights_packed&) {},
    [](atom::step) {},
    [](caf::tick_atom) {},
    [](const export_query&) {},
    [](const pull_outcome&) {},
  };
}

/// Collects what a controller gets, by the rules of a controller.
struct collector final : controller_link {
  void send(const std::string& peer, wire::event_envelope what) override {
    all.push_back(what.body);
    if (peer != current)
      return; // it lost that connection
    if (const auto* r = std::get_if<wire::response_ready>(&what.body)) {
      if (r->sequence <= last)
        return;
      EXPECT_EQ(r->sequence, last + 1) << "a hole";
      last = r->sequence;
      const auto place = std::pair{r->group, r->index};
      EXPECT_FALSE(results.contains(place)) << "twice";
      results.emplace(place, *r);
    } else if (const auto* d = std::get_if<wire::batch_done>(&what.body)) {
      EXPECT_EQ(d->sequence, last + 1);
      done = *d;
    } else if (const auto* f = std::get_if<wire::request_failed>(&what.body)) {
      failures.push_back(f->code);
    }
  }

  std::string current;
  std::uint64_t last = 0;
  std::map<std::pair<std::uint32_t, std::uint32_t>, wire::response_ready> results;
  std::optional<wire::batch_done> done;
  std::vector<errc> failures;
  std::vector<wire::event> all;
};

/// A scheduler over a journal in memory, and one controller; a death leaves what was committed.
struct scheduler_journal_test : deterministic_system {
  /// Starts the scheduler from what is on disk.
  void start() {
    log.all.resize(durable);
    auto access = std::make_shared<journal_access>();
    access->sink = std::shared_ptr<journal::sink>{&log, [](auto*) {}};
    access->written = [this] { return log.all.size(); };
    access->durable = [this] { return durable; };
    access->health = [this] { return health; };
    access->found = std::make_shared<journal::image>(log.image_of(durable, ++generation));
    link = std::make_shared<durable_link>(controller, access->written, access->durable);
    scheduler_parts parts{link, std::make_shared<scheduler_metrics>("test"),
                          std::make_shared<scheduler_pulse>()};
    parts.journal = access;
    if (with_weights) {
      auto exchange = weight_exchange::open({});
      ASSERT_TRUE(exchange) << exchange.error().detail;
      parts.weights = std::make_shared<weight_store>(
        std::move(*exchange), 0, [](const std::function<void()>& work) { work(); });
    }
    sut = sys.spawn(scheduler, parts, options);
    controller->current = "peer " + std::to_string(generation);
  }

  /// The disk has everything that was written.
  void commit() {
    durable = log.all.size();
    link->committed();
    caf::anon_send(sut, atom::durable_v);
  }

  void kill() {
    caf::anon_send_exit(sut, caf::exit_reason::kill);
    settle();
  }

  void join(const decode_worker_actor& worker) {
    self->send(worker, atom::join_v, registry_actor{sut});
  }

  void ask(wire::request body) {
    auto envelope = std::make_shared<wire::request_envelope>();
    envelope->request_id = ++requests;
    envelope->body = std::move(body);
    self->send(sut, controller_request{controller->current, envelope});
  }

  void run_steps(std::uint64_t count) {
    for (; count > 0; --count)
      (void)sched.try_run_once();
  }

  ~scheduler_journal_test() override { kill(); } // it writes to the log, which ends first

  scheduler_options options;
  bool with_weights = false;
  record_log log;
  std::uint64_t durable = 0;
  std::uint64_t generation = 0;
  journal::journal_health health;
  std::shared_ptr<collector> controller = std::make_shared<collector>();
  std::shared_ptr<durable_link> link;
  scheduler_actor sut;
  std::uint64_t requests = 0;
};

inline wire::submit_batch sample() {
  wire::submit_batch batch;
  batch.batch_key = "b";
  batch.seed = 11;
  batch.sampling.max_new_tokens = 60;
  batch.chunk_tokens = 7;
  for (int g = 0; g < 4; ++g) {
    auto& group = batch.groups.emplace_back();
    group.prompt_token_ids = {1, 2, 3 + g};
    group.group_size = 3;
  }
  return batch;
}

} // namespace rollcast::test
