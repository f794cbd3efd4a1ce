// Goal: the scheduler actor turns messages into placements and results: it places on events, asks
// nobody who is gone, appends a chunk's tokens once and at the known edge only, lets a source go
// only when the target has the KV, and answers every request exactly once.
// Method: CAF's test coordinator (no threads, no sleeping), workers that only record what they are
// told, and a link that only records what controllers would get. Every outcome is made by hand.

#include "actors/bytes.hpp"
#include "actors/error_bridge.hpp"
#include "actors/scheduler.hpp"
#include "tests/unit/actors/deterministic_system.hpp"
#include "tests/unit/actors/recording_link.hpp"

#include <vector>

namespace rollcast::test {
namespace {

using namespace std::chrono_literals;

/// What a recording worker was told.
struct worker_log {
  bool admitted = false;
  std::vector<weight_order> orders;
  std::vector<std::uint64_t> flips;
  worker_id id;
  errc refused = errc::ok;
  errc answer = errc::ok; ///< To chunks.
  bool silent = false;    ///< Never answers chunks.
  std::vector<chunk_assignment> chunks;
  std::vector<response_id> releases;
  std::vector<response_id> spills;
  std::vector<worker_id> lost;
  int cuts = 0; ///< Of all that run.
  std::vector<response_id> cut;
};

worker_hello plain_hello() {
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
decode_worker_actor::behavior_type recorder(decode_worker_actor::pointer self, worker_log* log,
                                            worker_hello hello) {
  return {
    [log, self](atom::decode, const chunk_assignment& a) -> caf::result<caf::ok_atom> {
      log->chunks.push_back(a);
      if (log->silent)
        return self->make_response_promise<caf::ok_atom>();
      if (log->answer != errc::ok)
        return to_caf(log->answer, "as told by the test");
      return caf::ok_atom_v;
    },
    [log](atom::release, worker_id, response_id response, std::uint32_t) {
      log->releases.push_back(response);
    },
    [log](atom::spill, worker_id, response_id response, std::uint32_t) {
      log->spills.push_back(response);
    },
    [log](atom::gone, worker_id lost) { log->lost.push_back(lost); },
    [self, log, hello](atom::join, const registry_actor& scheduler) {
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

wire::submit_batch one_group(const std::string& key, std::uint32_t size = 1) {
  wire::submit_batch batch;
  batch.batch_key = key;
  batch.sampling.max_new_tokens = 100;
  batch.chunk_tokens = 10;
  auto& group = batch.groups.emplace_back();
  group.prompt_token_ids = {1, 2, 3};
  group.group_size = size;
  return batch;
}

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

const std::vector<token_id> ten(10, 7);

TEST_F(scheduler_test, places_on_events_without_any_time_passing) {
  worker_log w;
  add_worker(w);
  ask(one_group("b"));
  ASSERT_EQ(w.chunks.size(), 1u);
  EXPECT_EQ(w.chunks[0].generate_max, 10u);
  EXPECT_EQ(from_bytes<token_id>(w.chunks[0].tokens), (std::vector<token_id>{1, 2, 3}));
  report(outcome_of(w.chunks[0], ten, chunk_end::budget));
  ASSERT_EQ(w.chunks.size(), 2u) << "the next chunk follows the edge at once";
  EXPECT_EQ(w.chunks[1].tokens.size(), 13 * sizeof(token_id));
  EXPECT_GT(w.chunks[1].attempt, w.chunks[0].attempt);
  EXPECT_EQ(w.chunks[1].pull_endpoint, "");
}

TEST_F(scheduler_test, pushes_a_finished_response_once_and_then_the_end) {
  worker_log w;
  add_worker(w);
  ask(one_group("b"));
  report(outcome_of(w.chunks[0], ten, chunk_end::budget));
  report(outcome_of(w.chunks[1], {8, 9}, chunk_end::stop));
  report(outcome_of(w.chunks[1], {8, 9}, chunk_end::stop)); // a doubled report
  const auto results = link->of<wire::response_ready>();
  ASSERT_EQ(results.size(), 1u);
  EXPECT_EQ(results[0].token_ids.size(), 12u);
  EXPECT_EQ(results[0].logprobs.size(), 12u);
  EXPECT_EQ(results[0].reason, wire::finish_reason::stop);
  const auto done = link->of<wire::batch_done>();
  ASSERT_EQ(done.size(), 1u);
  EXPECT_EQ(done[0].sequence, 2u);
  EXPECT_EQ(done[0].summary.tokens, 12u);
  EXPECT_EQ(done[0].summary.chunks, 2u);
  EXPECT_EQ(metrics->generated_tokens.value(), 12u);
}

TEST_F(scheduler_test, tells_nobody_else_of_a_clients_batch) {
  worker_log w;
  add_worker(w);
  const controller_request alice{
    .peer = "a", .envelope = {}, .client = "alice", .owner = "alice", .operates = false};
  const controller_request bob{
    .peer = "b", .envelope = {}, .client = "bob", .owner = "bob", .operates = false};
  const controller_request operates{
    .peer = "o", .envelope = {}, .client = "root", .owner = "root", .operates = true};
  ask(alice, one_group("k"));
  const auto refused = [&](wire::request body) {
    const auto before = link->of<wire::request_failed>().size();
    ask(bob, std::move(body));
    const auto all = link->of<wire::request_failed>();
    return all.size() == before + 1 && all.back().code == errc::not_permitted;
  };
  EXPECT_TRUE(refused(one_group("k")));
  EXPECT_TRUE(refused(one_group("k", 2)));
  EXPECT_TRUE(refused(wire::resume_results{"k", 0}));
  EXPECT_TRUE(refused(wire::ack_results{"k", 2}));
  EXPECT_TRUE(refused(wire::cancel_batch{"k"}));
  report(outcome_of(w.chunks[0], {8, 9}, chunk_end::stop));
  EXPECT_TRUE(refused(wire::ack_results{"k", 2}));
  EXPECT_EQ(link->of<wire::response_ready>().size(), 1u);
  ask(operates, wire::resume_results{"k", 0});
  ask(alice, wire::resume_results{"k", 0});
  EXPECT_EQ(link->of<wire::response_ready>().size(), 3u);
  EXPECT_FALSE(refused(one_group("bobs own")));
}

TEST_F(scheduler_test, runs_the_chunks_of_a_dead_worker_elsewhere_from_their_edge) {
  worker_log w1;
  worker_log w2;
  const auto dying = add_worker(w1);
  ask(one_group("b"));
  report(outcome_of(w1.chunks[0], ten, chunk_end::budget));
  ASSERT_EQ(w1.chunks.size(), 2u);
  add_worker(w2);
  end(dying);
  ASSERT_EQ(w2.chunks.size(), 1u);
  EXPECT_EQ(w2.chunks[0].tokens, w1.chunks[1].tokens) << "the edge, not the beginning";
  EXPECT_EQ(w2.chunks[0].pull_endpoint, "") << "its KV died with it";
  EXPECT_EQ(w2.lost, std::vector{w1.id});
  report(outcome_of(w1.chunks[1], ten, chunk_end::budget)); // the dead worker's last words
  EXPECT_EQ(w2.chunks.size(), 1u);
  EXPECT_EQ(metrics->generated_tokens.value(), 10u);
  EXPECT_EQ(metrics->worker_lost.value(), 1u);
}

TEST_F(scheduler_test, believes_no_outcome_that_does_not_continue_at_the_edge) {
  worker_log w;
  add_worker(w);
  ask(one_group("b"));
  auto skewed = outcome_of(w.chunks[0], ten, chunk_end::budget);
  skewed.position = 5;
  report(skewed);
  pass(50ms);
  ASSERT_EQ(w.chunks.size(), 2u) << "the chunk is run again";
  EXPECT_EQ(w.chunks[1].tokens, w.chunks[0].tokens);
  auto torn = outcome_of(w.chunks[1], ten, chunk_end::budget);
  torn.logprobs.pop_back();
  report(torn);
  pass(100ms);
  ASSERT_EQ(w.chunks.size(), 3u);
  EXPECT_EQ(metrics->generated_tokens.value(), 0u);
}

TEST_F(scheduler_test, releases_the_source_only_after_the_target_has_the_kv) {
  worker_log w1;
  worker_log w2;
  add_worker(w1);
  auto far = plain_hello();
  far.data_endpoint = "tcp://127.0.0.1:2";
  add_worker(w2, far);
  auto batch = one_group("b");
  batch.force_migration = true;
  ask(batch);
  auto& first = w1.chunks.empty() ? w2 : w1;
  auto& second = w1.chunks.empty() ? w1 : w2;
  ASSERT_EQ(first.chunks.size(), 1u);
  report(outcome_of(first.chunks[0], ten, chunk_end::budget));
  ASSERT_EQ(second.chunks.size(), 1u);
  EXPECT_EQ(second.chunks[0].pull_from, first.id);
  EXPECT_NE(second.chunks[0].pull_endpoint, "");
  EXPECT_TRUE(first.releases.empty()) << "nobody has confirmed anything";
  const auto& a = second.chunks[0];
  self->send(sut, atom::moved_v, a.worker, a.response, a.attempt, std::uint64_t{128});
  self->send(sut, atom::moved_v, a.worker, a.response, a.attempt, std::uint64_t{128});
  settle();
  EXPECT_EQ(first.releases, std::vector{a.response});
  EXPECT_EQ(metrics->migrations.zmq.value(), 1u) << "a doubled confirmation counts once";
  EXPECT_EQ(metrics->migrated_bytes.value(), 128u);
}

TEST_F(scheduler_test, has_a_worker_with_spill_space_spill_and_tells_where_the_kv_is) {
  worker_log w;
  auto small = plain_hello();
  small.kv_blocks = 4; // three chunks of ten tokens after three: one block each
  small.block_tokens = 13;
  small.spill_tokens = 100;
  add_worker(w, small);
  auto first = one_group("long", 4);
  first.sampling.max_new_tokens = 40;
  ask(first);
  ASSERT_EQ(w.chunks.size(), 4u);
  for (int i = 0; i < 4; ++i)
    report(outcome_of(w.chunks[static_cast<std::size_t>(i)], ten, chunk_end::budget));
  ASSERT_FALSE(w.spills.empty()) << "23 tokens need two blocks";
  EXPECT_TRUE(w.releases.empty());
  ask(wire::get_status{});
  const auto status = link->of<wire::status_report>().at(0);
  EXPECT_EQ(status.workers.at(0).kv_tokens_spilled, 13 * w.spills.size());
}

TEST_F(scheduler_test, gives_up_a_batch_that_no_worker_can_start) {
  worker_log w;
  w.answer = errc::out_of_kv_blocks;
  add_worker(w);
  ask(one_group("b"));
  EXPECT_EQ(w.chunks.size(), 1u);
  pass(50ms);
  EXPECT_EQ(w.chunks.size(), 2u);
  pass(50ms);
  EXPECT_EQ(w.chunks.size(), 2u) << "each pause is twice the one before";
  pass(50ms);
  EXPECT_EQ(w.chunks.size(), 3u) << "failures_max";
  const auto failed = link->of<wire::request_failed>();
  ASSERT_EQ(failed.size(), 1u);
  EXPECT_EQ(failed[0].batch_key, "b");
  ask(one_group("b"));
  EXPECT_EQ(link->of<wire::request_failed>().size(), 2u) << "told again until it is acknowledged";
  ask(wire::ack_results{"b", 2});
  w.answer = errc::ok;
  ask(one_group("b"));
  EXPECT_EQ(w.chunks.size(), 4u) << "its key is free again";
}

TEST_F(scheduler_test, keeps_what_is_finished_when_it_gives_a_batch_up) {
  worker_log w;
  add_worker(w);
  ask(one_group("b", 2));
  report(outcome_of(w.chunks[0], ten, chunk_end::stop));
  const auto delivered = link->of<wire::response_ready>();
  ASSERT_EQ(delivered.size(), 1u);
  for (int i = 0; i < 3; ++i) {
    self->send(sut, atom::failed_v, w.id, w.chunks.back().response, w.chunks.back().attempt,
               std::string{"no memory"});
    self->send(sut, atom::failed_v, w.id, w.chunks.back().response, w.chunks.back().attempt,
               std::string{"no memory"}); // doubled news counts once
    settle();
    pass(1s);
  }
  EXPECT_EQ(link->of<wire::request_failed>().size(), 1u);
  ask(wire::resume_results{"b", 0}, "another");
  const auto again = link->of<wire::response_ready>();
  ASSERT_EQ(again.size(), 4u) << "the finished one and the cancelled one, each pushed twice";
  EXPECT_EQ(again[2].token_ids, ten);
  EXPECT_EQ(again[3].reason, wire::finish_reason::cancelled);
}

TEST_F(scheduler_test, gives_up_a_batch_whose_response_kills_every_worker) {
  ask(one_group("b"));
  for (int i = 0; i < 4; ++i) {
    EXPECT_TRUE(link->of<wire::request_failed>().empty()) << i;
    worker_log w;
    const auto worker = add_worker(w);
    EXPECT_EQ(w.chunks.size(), 1u);
    end(worker);
  }
  const auto failed = link->of<wire::request_failed>();
  ASSERT_EQ(failed.size(), 1u) << "losses_max";
  EXPECT_EQ(failed[0].code, errc::peer_lost);
}

TEST_F(scheduler_test, promises_a_queued_batch_no_profile_of_a_cluster_that_has_gone) {
  worker_log first;
  end(add_worker(first));
  ask(one_group("b"));
  EXPECT_EQ(link->of<wire::batch_accepted>().at(0).numerics_profile, "");
  auto other = plain_hello();
  other.numerics = "cpu-bf16-v1";
  worker_log second;
  add_worker(second, other);
  report(outcome_of(second.chunks.at(0), ten, chunk_end::stop));
  EXPECT_EQ(link->of<wire::response_ready>().at(0).numerics_profile, "cpu-bf16-v1");
}

TEST_F(scheduler_test, counts_what_runs_and_what_waits) {
  worker_log w;
  const auto worker = add_worker(w);
  ask(one_group("b", 6));
  ask(wire::get_status{});
  const auto status = [this] { return link->of<wire::status_report>().back().batches.at(0); };
  EXPECT_EQ(status().running, 4u) << "slots";
  EXPECT_EQ(status().waiting, 2u);
  report(outcome_of(w.chunks[0], ten, chunk_end::stop));
  end(worker);
  ask(wire::get_status{});
  EXPECT_EQ(status().running, 0u);
  EXPECT_EQ(status().waiting, 5u);
  EXPECT_EQ(status().finished, 1u);
}

TEST_F(scheduler_test, loses_a_worker_that_does_not_answer) {
  worker_log w1;
  worker_log w2;
  w1.silent = true;
  add_worker(w1);
  ask(one_group("b"));
  add_worker(w2);
  ASSERT_EQ(w1.chunks.size(), 1u);
  EXPECT_TRUE(w2.chunks.empty());
  pass(601s);
  EXPECT_EQ(w2.chunks.size(), 1u);
  worker_beat beat;
  beat.worker = w1.id;
  auto answer = self->request(sut, 5s, atom::beat_v, beat);
  settle();
  errc said = errc::ok;
  answer.receive([](caf::ok_atom) {}, [&](const caf::error& why) { said = code_of(why); });
  EXPECT_EQ(said, errc::peer_lost) << "so that it registers anew";
}

TEST_F(scheduler_test, gives_a_worker_that_registers_anew_a_new_incarnation) {
  worker_log w;
  const auto worker = add_worker(w);
  ask(one_group("b"));
  const auto before = w.id;
  const auto old_chunk = w.chunks.at(0);
  self->send(worker, atom::join_v, registry_actor{sut});
  settle();
  EXPECT_NE(w.id, before);
  ASSERT_EQ(w.chunks.size(), 2u);
  EXPECT_EQ(w.chunks[1].worker, w.id);
  report(outcome_of(old_chunk, ten, chunk_end::budget));
  EXPECT_EQ(metrics->generated_tokens.value(), 0u) << "news of the old incarnation";
}

TEST_F(scheduler_test, refuses_a_worker_that_differs_from_the_cluster) {
  worker_log first;
  add_worker(first);
  for (int what = 0; what < 4; ++what) {
    worker_log log;
    auto hello = plain_hello();
    if (what == 0)
      hello.numerics_hash.low = 1;
    else if (what == 1)
      hello.weights_hash.low = 1;
    else if (what == 2)
      hello.context_max = 999;
    else
      hello.eos_token_ids = "\1\0\0\0";
    add_worker(log, hello);
    EXPECT_EQ(log.refused, errc::numerics_mismatch) << what;
  }
  worker_log empty;
  auto hello = plain_hello();
  hello.kv_blocks = 0;
  add_worker(empty, hello);
  EXPECT_EQ(empty.refused, errc::bad_config);
}

TEST_F(scheduler_test, sends_a_draining_worker_nothing_new) {
  worker_log w;
  const auto worker = add_worker(w);
  ask(one_group("b"));
  auto answer = self->request(sut, 5s, atom::drain_v, w.id);
  settle();
  bool promised = false;
  answer.receive([&](caf::ok_atom) { promised = true; }, [](const caf::error&) {});
  EXPECT_TRUE(promised);
  report(outcome_of(w.chunks[0], ten, chunk_end::budget));
  EXPECT_EQ(w.chunks.size(), 1u);
  end(worker);
  EXPECT_EQ(metrics->worker_lost.value(), 0u) << "it left in peace";
}

TEST_F(scheduler_test, runs_batches_of_different_modes_one_after_another) {
  worker_log w;
  add_worker(w);
  ask(one_group("first"));
  auto other = one_group("second");
  other.policy = "static";
  ask(other);
  ask(one_group("third"));
  ASSERT_EQ(w.chunks.size(), 1u) << "static waits for context, and the third behind it";
  report(outcome_of(w.chunks[0], ten, chunk_end::stop));
  ASSERT_EQ(w.chunks.size(), 2u);
  EXPECT_FALSE(w.chunks[1].reserve);
  EXPECT_EQ(w.chunks[1].generate_max, 100u) << "static has no chunks";
  report(outcome_of(w.chunks[1], ten, chunk_end::stop));
  EXPECT_EQ(w.chunks.size(), 3u);
}

TEST_F(scheduler_test, promises_a_batch_the_version_that_it_requires_and_else_what_it_started_at) {
  const auto last = [this] { return link->of<wire::batch_accepted>().back().weight_version; };
  auto hello = plain_hello();
  hello.weight_epoch = 3;
  worker_log w;
  add_worker(w, hello);
  ask(one_group("b"));
  EXPECT_EQ(last(), std::nullopt) << "an update may come before it starts";
  ask(wire::resume_results{"b", 0});
  EXPECT_EQ(last(), 3u) << "it has started";
  auto strict = one_group("strict");
  strict.required_weight_version = 3;
  ask(strict);
  EXPECT_EQ(last(), 3u);
}

TEST_F(scheduler_test, runs_batches_together_or_in_turn_as_it_is_told) {
  for (const bool wait : {false, true}) {
    scheduler_options options;
    options.batches_wait = wait;
    start(options);
    worker_log w;
    const auto worker = add_worker(w);
    ask(one_group("first"));
    ask(one_group("second"));
    ASSERT_EQ(w.chunks.size(), wait ? 1u : 2u);
    report(outcome_of(w.chunks[0], ten, chunk_end::stop));
    EXPECT_EQ(w.chunks.size(), 2u) << "the second has started by now";
    end(worker);
  }
}

TEST_F(scheduler_test, answers_every_request_once_under_its_number) {
  worker_log w;
  add_worker(w);
  ask(one_group("b"));
  ask(wire::get_status{});
  ask(wire::ack_results{"b", 1});
  ask(wire::ack_results{"nobody", 1});
  ask(wire::resume_results{"b", 0});
  ask(wire::load_weights{.directory = "/d"});
  ask(wire::cancel_batch{"b"});
  std::map<std::uint64_t, int> answers;
  for (const auto& s : link->all)
    if (s.what.request_id != 0)
      ++answers[s.what.request_id];
  EXPECT_EQ(answers.size(), 7u);
  for (const auto& [id, count] : answers)
    EXPECT_EQ(count, 1) << id;
  const auto status = link->of<wire::status_report>();
  ASSERT_EQ(status.size(), 1u);
  ASSERT_EQ(status[0].workers.size(), 1u);
  ASSERT_EQ(status[0].batches.size(), 1u);
  EXPECT_EQ(status[0].batches[0].running, 1u);
  const auto failed = link->of<wire::request_failed>();
  ASSERT_EQ(failed.size(), 2u);
  EXPECT_EQ(failed[0].code, errc::unknown_batch);
  EXPECT_EQ(failed[1].code, errc::unimplemented);
  EXPECT_EQ(w.releases.size(), 1u) << "a cancelled chunk is dropped where it runs";
}

TEST_F(scheduler_test, keeps_results_for_a_controller_that_has_gone) {
  worker_log w;
  add_worker(w);
  ask(one_group("b"), "first");
  self->send(sut, atom::gone_v, std::string{"first"});
  settle();
  report(outcome_of(w.chunks[0], ten, chunk_end::stop));
  EXPECT_TRUE(link->of<wire::response_ready>().empty());
  ask(wire::resume_results{"b", 0}, "second");
  EXPECT_EQ(link->of<wire::response_ready>().size(), 1u);
  EXPECT_EQ(link->all.back().peer, "second");
}

TEST_F(scheduler_test, keeps_a_batch_without_workers_and_checks_it_when_one_comes) {
  ask(one_group("good"));
  auto bad = one_group("bad");
  bad.groups[0].prompt_token_ids = {500};
  ask(bad);
  EXPECT_EQ(link->of<wire::batch_accepted>().size(), 2u);
  worker_log w;
  add_worker(w);
  EXPECT_EQ(w.chunks.size(), 1u);
  const auto failed = link->of<wire::request_failed>();
  ASSERT_EQ(failed.size(), 1u);
  EXPECT_EQ(failed[0].batch_key, "bad");
  EXPECT_EQ(failed[0].code, errc::bad_prompt);
}

TEST_F(scheduler_test, stops_with_every_edge_and_begins_nothing_new) {
  worker_log w;
  add_worker(w);
  ask(one_group("b", 2));
  ASSERT_EQ(w.chunks.size(), 2u);
  self->send(sut, atom::drain_v);
  settle();
  EXPECT_EQ(w.cuts, 1);
  report(outcome_of(w.chunks[0], {7, 7}, chunk_end::budget));
  EXPECT_FALSE(pulse->stopped) << "a chunk runs";
  report(outcome_of(w.chunks[1], {}, chunk_end::budget));
  EXPECT_TRUE(pulse->stopped);
  EXPECT_EQ(w.chunks.size(), 2u) << "nothing is placed";
  ask(one_group("new"));
  const auto refused = link->of<wire::request_failed>();
  ASSERT_EQ(refused.size(), 1u);
  EXPECT_EQ(refused[0].code, errc::peer_lost);
  ask(one_group("b", 2));
  EXPECT_EQ(link->of<wire::batch_accepted>().size(), 2u) << "what it has it tells";
}

TEST_F(scheduler_test, places_a_chunk_again_that_was_cut_before_its_first_token) {
  worker_log w;
  add_worker(w);
  ask(one_group("b"));
  report(outcome_of(w.chunks.at(0), ten, chunk_end::budget));
  auto nothing = outcome_of(w.chunks.at(1), {}, chunk_end::budget);
  nothing.kv_parked = false;
  report(nothing);
  ASSERT_EQ(w.chunks.size(), 3u);
  EXPECT_EQ(w.chunks[2].tokens, w.chunks[1].tokens);
}

} // namespace
} // namespace rollcast::test
