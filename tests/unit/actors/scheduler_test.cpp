// Goal: the scheduler actor turns messages into placements: it places on events, asks nobody who is
// gone, appends a chunk's tokens once and at the known edge only, and lets a source go only when
// the target has the KV.
// Method: CAF's test coordinator (no threads, no sleeping), workers that only record what they are
// told, and a link that only records what controllers would get. Every outcome is made by hand.

#include "tests/unit/actors/scheduler_fixture.hpp"

namespace rollcast::test {
namespace {

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
  self->send(sut, atom::moved_v, a.worker, a.response, a.attempt, std::uint64_t{128}, false);
  self->send(sut, atom::moved_v, a.worker, a.response, a.attempt, std::uint64_t{128}, false);
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

TEST_F(scheduler_test, loses_a_worker_whose_engine_does_not_return) {
  worker_log stuck;
  worker_log well;
  add_worker(stuck);
  add_worker(well);
  ask(one_group("b"));
  for (int minute = 0; minute < 12; ++minute) {
    worker_beat beat;
    beat.worker = well.id;
    self->send(sut, atom::beat_v, beat);
    pass(1min);
  }
  EXPECT_EQ(metrics->worker_lost.value(), 1u);
  EXPECT_EQ(well.lost, std::vector{stuck.id});
  EXPECT_EQ(well.chunks.size(), 1u) << "whoever had it first";
  worker_beat beat;
  beat.worker = stuck.id;
  auto answer = self->request(sut, 5s, atom::beat_v, beat);
  settle();
  errc said = errc::ok;
  answer.receive([](caf::ok_atom) {}, [&](const caf::error& why) { said = code_of(why); });
  EXPECT_EQ(said, errc::peer_lost) << "so that it registers anew";
}

TEST_F(scheduler_test, loses_a_worker_to_which_a_chunk_came_too_late) {
  worker_log gone;
  worker_log well;
  add_worker(gone);
  ask(one_group("b"));
  add_worker(well);
  self->send(sut, atom::failed_v, gone.id, std::string{"this is worker 9"});
  settle();
  EXPECT_EQ(well.lost, std::vector{gone.id});
  EXPECT_EQ(well.chunks.size(), 1u);
}

TEST_F(scheduler_test, tells_workers_when_a_group_is_over) {
  worker_log w;
  add_worker(w);
  ask(one_group("b", 2));
  report(outcome_of(w.chunks.at(0), ten, chunk_end::stop));
  EXPECT_TRUE(w.over.empty()) << "a sibling is left";
  report(outcome_of(w.chunks.at(1), ten, chunk_end::stop));
  EXPECT_EQ(w.over, std::vector{group_id{1}});
  ask(one_group("c"));
  ask(wire::cancel_batch{"c"});
  EXPECT_EQ(w.over.size(), 2u);
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
  for (int what = 0; what < 5; ++what) {
    worker_log log;
    auto hello = plain_hello();
    if (what == 0)
      hello.numerics_hash.low = 1;
    else if (what == 1)
      hello.weights_hash.low = 1;
    else if (what == 2)
      hello.context_max = 999;
    else if (what == 3)
      hello.experts = {1, 2, 1};
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

TEST_F(scheduler_test, takes_tokens_only_with_the_ids_of_experts_that_go_with_them) {
  worker_log w;
  auto hello = plain_hello();
  hello.experts = {1, 2, 1};
  add_worker(w, hello);
  auto batch = one_group("b");
  batch.routed_experts_from = 2;
  batch.sampling.max_new_tokens = 12;
  ask(batch);
  ASSERT_EQ(w.chunks.size(), 1u);
  EXPECT_TRUE(w.chunks[0].wants_experts);
  EXPECT_EQ(w.chunks[0].experts_from, 2u);
  auto o = outcome_of(w.chunks[0], ten, chunk_end::budget);
  o.experts = std::string(2 * 9, 'x');
  report(o);
  EXPECT_EQ(metrics->generated_tokens.value(), 0u);
  pass(50ms); // the pause before it is placed again
  ASSERT_EQ(w.chunks.size(), 2u);
  EXPECT_EQ(w.chunks[1].tokens, w.chunks[0].tokens);
  o = outcome_of(w.chunks[1], ten, chunk_end::budget);
  o.experts = std::string(2 * 10, 'a'); // positions 2 to 11 of 3 + 10 tokens
  report(o);
  ASSERT_EQ(w.chunks.size(), 3u);
  o = outcome_of(w.chunks[2], {7, 7}, chunk_end::length);
  o.experts = std::string(2 * 2, 'b');
  report(o);
  const auto results = link->of<wire::response_ready>();
  ASSERT_EQ(results.size(), 1u);
  ASSERT_TRUE(results[0].experts);
  EXPECT_EQ(results[0].experts->start, 2u);
  EXPECT_EQ(results[0].experts->layout, hello.experts);
  EXPECT_EQ(results[0].experts->ids, std::string(20, 'a') + std::string(4, 'b'));
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
