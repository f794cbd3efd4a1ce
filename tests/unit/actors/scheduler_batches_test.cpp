// Goal: the scheduler actor answers every request exactly once, tells a client's results to nobody
// else, and ends, keeps or gives up batches as it must.
// Method: as in scheduler_test.cpp.

#include "tests/unit/actors/scheduler_fixture.hpp"

namespace rollcast::test {
namespace {

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

TEST_F(scheduler_test, lets_nobody_keep_a_key_from_another_client) {
  worker_log w;
  add_worker(w);
  const auto client = [](const std::string& name, bool operates = false) {
    return controller_request{.peer = name.substr(0, 1),
                              .envelope = {},
                              .client = name,
                              .owner = name,
                              .operates = operates};
  };
  ask(client("bob"), one_group("k", 2));
  ask(client("alice"), one_group("k"));
  ask(client("root", true), one_group("k", 3));
  const auto taken = link->of<wire::batch_accepted>();
  ASSERT_EQ(taken.size(), 3u) << "three batches";
  EXPECT_EQ(taken[1].responses, 1u);
  EXPECT_EQ(taken[2].responses, 3u);
  ask(client("alice"), wire::cancel_batch{"k"});
  ask(client("alice"), wire::ack_results{"k", 2});
  ask(client("carol"), wire::resume_results{"k", 0});
  ask(client("other", true), wire::resume_results{"k", 0});
  const auto failed = link->of<wire::request_failed>();
  ASSERT_EQ(failed.size(), 2u);
  EXPECT_EQ(failed[0].code, errc::not_permitted);
  EXPECT_EQ(failed[1].code, errc::batch_conflict) << "an operator with none of its own";
  EXPECT_EQ(link->of<wire::batch_done>().size(), 1u) << "alice's is cancelled, nobody else's";
}

TEST_F(scheduler_test, counts_a_batch_of_a_journal_for_who_collects_it) {
  worker_log w;
  add_worker(w);
  ask(one_group("k")); // nobody's, as one that was restored without keys
  const controller_request here{
    .peer = "a", .envelope = {}, .client = "10.0.0.1", .limits = {.batches = 1}};
  ask(here, one_group("more"));
  EXPECT_EQ(link->of<wire::request_failed>().size(), 0u);
  ask(here, wire::cancel_batch{"more"});
  ask(here, wire::resume_results{"k", 0});
  ask(here, one_group("again"));
  const auto failed = link->of<wire::request_failed>();
  ASSERT_EQ(failed.size(), 1u);
  EXPECT_EQ(failed[0].code, errc::queue_full);
}

TEST_F(scheduler_test, gives_up_a_batch_that_no_worker_can_start) {
  worker_log w;
  w.full = true;
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
  w.full = false;
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

} // namespace
} // namespace rollcast::test
