// Goal: a scheduler that dies at any moment and is started from its journal ends every batch with
// the results of an undisturbed run, each delivered once; it keeps identity and epoch, tells nobody
// what is not on disk.
// Method: CAF's test coordinator, workers that generate by arithmetic, a journal in memory of which
// a death leaves only what was committed, and a controller that resumes by sequence number. Deaths
// and commits are drawn from seeds.

#include "tests/unit/actors/journal_fixture.hpp"

namespace rollcast::test {
namespace {

/// The results without what an interruption may change: their order.
auto plain(std::map<std::pair<std::uint32_t, std::uint32_t>, wire::response_ready> results) {
  for (auto& [place, r] : results)
    r.sequence = 0;
  return results;
}

TEST_F(scheduler_journal_test, dies_anywhere_and_gives_each_result_once_as_if_it_had_lived) {
  worker_log w1;
  worker_log w2;
  const auto one = spawn(reckoner, &w1, plain_hello());
  const auto two = spawn(reckoner, &w2, plain_hello());
  // The truth, without a death.
  start();
  join(one);
  settle();
  ask(sample());
  for (int i = 0; i < 3; ++i) {
    settle();
    commit();
  }
  ASSERT_TRUE(controller->done);
  const auto truth = plain(controller->results);
  ASSERT_EQ(truth.size(), 12u);
  kill();
  std::uint64_t deaths = 0;
  std::uint64_t from_edges = 0;
  for (std::uint64_t seed = 1; seed <= 60; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    prng random{seed};
    *controller = {};
    log.all.clear();
    durable = generation = 0;
    start();
    join(one);
    ask(sample());
    for (int turn = 0; turn < 2'000 && !controller->done; ++turn) {
      run_steps(random.below(6));
      if (random.chance(40))
        commit();
      if (random.chance(20) && controller->last > 0)
        ask(wire::ack_results{"b", controller->last});
      if (!random.chance(4) || deaths > 3 * seed)
        continue;
      ++deaths;
      kill();
      start();
      settle();
      for (const auto& batch : log.image_of(durable).batches)
        for (const auto& r : batch.responses)
          from_edges += r.sequence == 0 && !r.tokens.empty() ? 1 : 0;
      join(random.chance(50) ? one : two);
      if (random.chance(30))
        join(two);
      ask(wire::resume_results{"b", controller->last});
      settle();
      if (!controller->failures.empty()) { // the submission was not on disk
        EXPECT_EQ(controller->failures.back(), errc::unknown_batch);
        EXPECT_EQ(controller->last, 0u) << "it was told of a batch that is lost";
        controller->failures.clear();
        ask(sample());
      }
    }
    commit();
    ASSERT_TRUE(controller->done);
    EXPECT_EQ(plain(controller->results), truth);
    kill();
  }
  EXPECT_GT(deaths, 60u);
  EXPECT_GT(from_edges, 20u) << "too few deaths in the middle of a response";
}

TEST_F(scheduler_journal_test, says_nothing_before_it_is_on_disk) {
  worker_log w;
  start();
  join(spawn(reckoner, &w, plain_hello()));
  settle();
  ask(sample());
  ask(wire::get_status{});
  ask(wire::rollback_weights{});
  settle();
  ASSERT_EQ(controller->all.size(), 2u) << "a status and a refusal wait for nothing";
  ask(wire::resume_results{"nobody", 0}); // a restart may bring back what was forgotten
  settle();
  ASSERT_EQ(controller->all.size(), 2u) << "that a batch is not known may be news, too";
  EXPECT_GT(link->waiting(), 0u);
  commit();
  EXPECT_GT(controller->results.size(), 0u);
  EXPECT_TRUE(std::holds_alternative<wire::batch_accepted>(controller->all[2]));
  EXPECT_EQ(controller->failures, (std::vector{errc::unimplemented, errc::unknown_batch}));
  EXPECT_EQ(link->waiting(), 0u);
}

struct counting_link final : controller_link {
  void send(const std::string&, wire::event_envelope) override { ++sent; }
  std::size_t sent = 0;
};

TEST(durable_link, holds_results_up_to_a_bound_and_answers_beyond_it) {
  const auto to = std::make_shared<counting_link>();
  std::uint64_t durable = 0;
  durable_link link{to, [] { return 1u; }, [&] { return durable; }};
  wire::response_ready large;
  large.token_ids.resize(1u << 20);
  large.logprobs.resize(1u << 20);
  for (int i = 0; i < 100; ++i)
    link.send("peer", {0, large}); // 8 MiB each
  const auto held = link.waiting();
  EXPECT_GT(held, 20u);
  EXPECT_LT(held, 40u);
  link.send("peer", {7, wire::request_done{}});
  EXPECT_EQ(link.waiting(), held + 1);
  durable = 1;
  link.committed();
  EXPECT_EQ(to->sent, held + 1);
  link.send("peer", {0, large});
  EXPECT_EQ(to->sent, held + 2) << "there is room again";
}

TEST_F(scheduler_journal_test, takes_no_batch_that_it_could_not_write_down) {
  worker_log w;
  start();
  join(spawn(reckoner, &w, plain_hello()));
  settle();
  auto first = sample();
  ask(first);
  settle();
  health = {false, "the disk is full", 0, 0};
  auto second = sample();
  second.batch_key = "c";
  ask(second);
  ask(first);
  settle();
  commit();
  settle();
  commit();
  EXPECT_EQ(controller->failures, std::vector{errc::queue_full});
  EXPECT_TRUE(controller->done) << "what runs goes on";
}

TEST_F(scheduler_journal_test, keeps_identity_and_epoch_and_numbers_itself_anew) {
  worker_log w;
  worker_log other;
  start();
  auto hello = plain_hello();
  hello.weight_epoch = 5;
  const auto worker = spawn(reckoner, &w, hello);
  join(worker);
  settle();
  const auto before = w.id;
  log.write(journal::epoch_promised{7});
  commit();
  kill();
  start();
  settle();
  auto stale = plain_hello(); // the checkpoint that all were started from
  stale.weights_hash = {9, 9};
  join(spawn(reckoner, &other, stale));
  settle();
  EXPECT_EQ(other.refused, errc::ok);
  EXPECT_FALSE(other.admitted) << "the first worker does not decide any more";
  EXPECT_GT(other.id.value, before.value);
  join(worker);
  settle();
  EXPECT_TRUE(w.admitted);
  auto alien = plain_hello();
  alien.numerics_hash = {4, 4};
  worker_log refused;
  join(spawn(reckoner, &refused, alien));
  settle();
  EXPECT_EQ(refused.refused, errc::numerics_mismatch);
  ask(wire::get_status{});
  settle();
  const auto& status = std::get<wire::status_report>(controller->all.back());
  EXPECT_EQ(status.weight_version, 5u);
  EXPECT_EQ(status.weights.epoch, 5u);
}

TEST_F(scheduler_journal_test, believes_no_late_word_about_chunks_of_the_scheduler_before) {
  worker_log w;
  start();
  const auto worker = spawn(reckoner, &w, plain_hello());
  join(worker);
  ask(sample());
  w.mute = true;
  settle();
  commit();
  const auto old = w.id;
  ASSERT_GT(w.chunks, 0u);
  kill();
  start();
  join(worker);
  settle();
  chunk_assignment a;
  a.worker = old;
  a.response = {1};
  a.attempt = 1;
  a.generate_max = 3;
  self->send(sut, atom::report_v, reckon(a, 0));
  settle();
  ask(wire::get_status{});
  settle();
  EXPECT_EQ(std::get<wire::status_report>(controller->all.back()).batches[0].generated_tokens, 0u);
}

} // namespace
} // namespace rollcast::test
