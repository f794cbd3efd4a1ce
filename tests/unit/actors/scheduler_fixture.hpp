#pragma once

#include "actors/bytes.hpp"
#include "actors/error_bridge.hpp"
#include "actors/scheduler.hpp"
#include "tests/unit/actors/deterministic_system.hpp"
#include "tests/unit/actors/recording_link.hpp"

#include <vector>

namespace rollcast::test {

using namespace std::chrono_literals;

/// What a recording worker was told.
struct worker_log {
  bool admitted = false;
  std::vector<weight_order> orders;
  std::vector<std::uint64_t> flips;
  worker_id id;
  registry_actor scheduler;
  errc refused = errc::ok;
  bool full = false; ///< Begins no chunk.
  std::vector<chunk_assignment> chunks;
  std::vector<response_id> releases;
  std::vector<response_id> spills;
  std::vector<worker_id> lost;
  std::vector<group_id> over;
  int cuts = 0; ///< Of all that run.
  std::vector<response_id> cut;
};

inline worker_hello plain_hello() {
  worker_hello hello;
  hello.name = "recorder";
  hello.data_endpoint = "tcp://127.0.0.1:1";
  hello.numerics = "cpu-f32-v1";
  hello.kv_blocks = 64;
  hello.block_tokens = 16;
  hello.slots = 4;
  hello.kv_bytes_per_token = 8;
  hello.context_max = 1'000;
  hello.vocabulary = 100;
  return hello;
}

/// Registers when it is told of a scheduler, and notes everything.
inline decode_worker_actor::behavior_type recorder(decode_worker_actor::pointer self,
                                                   worker_log* log, worker_hello hello) {
  return {
    [log](atom::decode, const chunk_assignment& a) {
      log->chunks.push_back(a);
      if (log->full)
        caf::anon_send(log->scheduler, atom::failed_v, a.worker, a.response, a.attempt,
                       std::string{"as told by the test"});
    },
    [log](atom::release, worker_id, response_id response, std::uint32_t) {
      log->releases.push_back(response);
    },
    [log](atom::spill, worker_id, response_id response, std::uint32_t) {
      log->spills.push_back(response);
    },
    [log](atom::gone, worker_id lost) { log->lost.push_back(lost); },
    [log](atom::gone, group_id group) { log->over.push_back(group); },
    [self, log, hello](atom::join, const registry_actor& scheduler) {
      log->scheduler = scheduler;
      self->request(scheduler, 5s, atom::hello_v, hello)
        .then([log](worker_id id) { log->id = id; },
              [log](const caf::error& why) { log->refused = code_of(why); });
    },
    [](atom::drain) {},
    [log](atom::cut, worker_id) { ++log->cuts; },
    [log](atom::cut, worker_id, response_id response, std::uint32_t) {
      log->cut.push_back(response);
    },
    [log](atom::admit, worker_id) { log->admitted = true; },
    [log](atom::prepare, const weight_order& order) { log->orders.push_back(order); },
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

inline wire::submit_batch one_group(const std::string& key, std::uint32_t size = 1) {
  wire::submit_batch batch;
  batch.batch_key = key;
  batch.sampling.max_new_tokens = 100;
  batch.chunk_tokens = 10;
  auto& group = batch.groups.emplace_back();
  group.prompt_token_ids = {1, 2, 3};
  group.group_size = size;
  return batch;
}

/// A scheduler without threads or time; workers that record what they are told.
struct scheduler_test : deterministic_system {
  scheduler_test() {
    scheduler_options options;
    options.policy.reserve_tokens = 1;
    options.failures_max = 3;
    options.losses_max = 4;
    start(options);
  }

  /// Makes the scheduler under test, in place of an earlier one.
  void start(const scheduler_options& options) {
    scheduler_parts parts{link, std::make_shared<scheduler_metrics>("test"),
                          std::make_shared<scheduler_pulse>()};
    metrics = parts.metrics;
    pulse = parts.pulse;
    sut = spawn(scheduler, parts, options);
  }

  decode_worker_actor add_worker(worker_log& log, const worker_hello& hello = plain_hello()) {
    auto worker = spawn(recorder, &log, hello);
    self->send(worker, atom::join_v, registry_actor{sut});
    settle();
    return worker;
  }

  void ask(wire::request body, const std::string& peer = "peer") {
    ask({.peer = peer, .envelope = {}}, std::move(body));
  }
  void ask(controller_request from, wire::request body) {
    auto envelope = std::make_shared<wire::request_envelope>();
    envelope->request_id = ++requests;
    envelope->body = std::move(body);
    from.envelope = envelope;
    self->send(sut, from);
    settle();
  }

  /// A chunk that ends as a worker would say it, with `tokens` new ones.
  static chunk_outcome outcome_of(const chunk_assignment& a, std::vector<token_id> tokens,
                                  chunk_end why) {
    chunk_outcome o;
    o.worker = a.worker;
    o.response = a.response;
    o.attempt = a.attempt;
    o.position = static_cast<std::uint32_t>(a.tokens.size() / sizeof(token_id)) - a.prompt_tokens;
    o.tokens = to_bytes(std::span<const token_id>{tokens});
    const std::vector<float> logprobs(tokens.size(), -0.5f);
    o.logprobs = to_bytes(std::span<const float>{logprobs});
    o.why = static_cast<std::uint8_t>(why);
    o.kv_parked = why == chunk_end::budget;
    return o;
  }

  void report(const chunk_outcome& o) {
    self->send(sut, atom::report_v, o);
    settle();
  }

  void end(const decode_worker_actor& worker) {
    caf::anon_send_exit(worker, caf::exit_reason::kill);
    settle();
  }

  std::shared_ptr<recording_link> link = std::make_shared<recording_link>();
  std::shared_ptr<scheduler_metrics> metrics;
  std::shared_ptr<scheduler_pulse> pulse;
  scheduler_actor sut;
  std::uint64_t requests = 0;
};

inline const std::vector<token_id> ten(10, 7);

} // namespace rollcast::test
