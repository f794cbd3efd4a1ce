// Goal: the fleet changes over to new weights as one. Every token was made by the epoch that its
// response says; whoever comes late is brought up before it gets work; scores are the bits of
// generation at every epoch that is held.
// Method: real nodes in one process, as in cluster_test.cpp, over a device whose weights are two
// small tensors and whose tokens betray KV of other weights. Oracles: clusters that were started
// with the new weights, and for responses of several epochs an engine per epoch.

#include "tests/unit/actors/weight_fixture.hpp"

#include <gtest/gtest.h>

#include <future>

namespace rollcast::test {
namespace {

using namespace std::chrono_literals;

const fake_values five{{"fake.a", 5}, {"fake.b", 0}};

/// A device that takes long enough for something to happen meanwhile.
fake_device slow_device(std::chrono::microseconds step = 300us) {
  fake_device device;
  device.step_time = step;
  return device;
}

TEST(weights, sent_in_buckets_are_what_the_fleet_serves) {
  cluster c;
  c.add_worker();
  c.add_worker();
  wait_for_ready(c, 2);
  EXPECT_EQ(plain(run(c, sample_batch("before"))), at_epoch(truth_of(1), 0));
  auto client = connect(c);
  const auto served = must_update(client, five);
  EXPECT_EQ(served.epoch, 1u);
  EXPECT_EQ(served.workers, 2u);
  EXPECT_EQ(served.tensors, 2u);
  EXPECT_EQ(served.bytes, 16u);
  EXPECT_EQ(served.hash, (fake_weights{{5, 0}}.hash()));
  EXPECT_EQ(served.phases.size(), 4u) << "receiving, distributing, waiting, flipping";
  EXPECT_EQ(plain(run(c, sample_batch("after"))), at_epoch(truth_of(5), 1));
  const auto status = client.status();
  ASSERT_TRUE(status);
  EXPECT_EQ(status->weight_version, 1u);
  EXPECT_EQ(status->weights.phase, "idle");
  EXPECT_EQ(status->weights.epoch, 1u);
  EXPECT_EQ(status->weights.previous_epoch, 0u);
  for (const auto& w : status->workers)
    EXPECT_EQ(w.epoch, 1u) << w.name;
}

TEST(weights, that_did_not_change_need_not_be_sent) {
  cluster c;
  c.add_worker();
  c.add_worker();
  wait_for_ready(c, 2);
  auto client = connect(c);
  const auto served = must_update(client, {{"fake.b", 6}}, {.changed_only = true});
  EXPECT_EQ(served.tensors, 1u);
  EXPECT_EQ(served.hash, (fake_weights{{1, 6}}.hash()));
  EXPECT_EQ(plain(run(c, sample_batch("one"))), at_epoch(truth_of(1 ^ 6), 1));
  must_update(client, {{"fake.a", 8}}, {.epoch = 7, .changed_only = true});
  EXPECT_EQ(plain(run(c, sample_batch("two"))), at_epoch(truth_of(8 ^ 6), 7))
    << "the change before is still there, and the controller may choose the number";
  // Nothing of this differs from what is served: nothing is pulled, and yet it is an epoch.
  EXPECT_EQ(must_update(client, {{"fake.a", 8}, {"fake.b", 6}}).epoch, 8u);
  EXPECT_EQ(plain(run(c, sample_batch("three"))), at_epoch(truth_of(8 ^ 6), 8));
}

TEST(weights, may_lie_in_a_directory) {
  const auto directory = std::filesystem::temp_directory_path() / "rollcast-weights-test";
  std::filesystem::create_directories(directory);
  const std::string header = R"({"fake.a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},)"
                             R"("fake.b":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}})";
  std::ofstream{directory / "model.safetensors", std::ios::binary}
    << bytes_of_value(header.size()) << header << bytes_of_value(5) << bytes_of_value(0);
  cluster c;
  c.add_worker();
  c.add_worker();
  wait_for_ready(c, 2);
  auto client = connect(c);
  const auto served = client.load_weights({.directory = directory.string()}, 20s);
  ASSERT_TRUE(served) << served.error().detail;
  EXPECT_EQ(served->epoch, 1u);
  EXPECT_EQ(served->tensors, 2u);
  std::filesystem::remove_all(directory);
  EXPECT_EQ(plain(run(c, sample_batch("after"))), at_epoch(truth_of(5), 1));
}

TEST(weights, roll_back_once_to_the_epoch_before) {
  cluster c;
  c.add_worker();
  c.add_worker();
  wait_for_ready(c, 2);
  auto client = connect(c);
  const auto nothing = client.rollback_weights(5s);
  ASSERT_FALSE(nothing);
  EXPECT_EQ(nothing.error().code, errc::stale_epoch) << nothing.error().detail;
  must_update(client, five);
  must_update(client, {{"fake.b", 9}}, {.changed_only = true});
  const auto back = client.rollback_weights(20s);
  ASSERT_TRUE(back) << back.error().detail;
  EXPECT_EQ(back->epoch, 1u);
  EXPECT_EQ(back->hash, (fake_weights{{5, 0}}.hash()));
  EXPECT_EQ(plain(run(c, sample_batch("back"))), at_epoch(truth_of(5), 1));
  EXPECT_FALSE(client.rollback_weights(5s)) << "what was before that is gone";
  const auto next = must_update(client, {{"fake.b", 10}}, {.changed_only = true});
  EXPECT_EQ(next.epoch, 3u) << "a number is used once";
  EXPECT_EQ(plain(run(c, sample_batch("next"))), at_epoch(truth_of(5 ^ 10), 3));
}

TEST(weights, flip_between_batches_gives_no_response_two_epochs) {
  cluster c;
  c.add_worker(slow_device());
  c.add_worker(slow_device());
  wait_for_ready(c, 2);
  auto open = connect(c);
  auto first = sample_batch("open");
  first.chunk_tokens = 16;
  ASSERT_TRUE(open.submit(first));
  auto sender = connect(c);
  auto served = std::async(std::launch::async, [&] { return must_update(sender, five); });
  wait_for_phase(c, "waiting");
  auto late = connect(c);
  ASSERT_TRUE(late.submit(sample_batch("second")));
  const auto status = wait_for_phase(c, "waiting");
  ASSERT_EQ(status.batches.size(), 2u);
  EXPECT_EQ(status.batches[1].running, 0u) << "it would hold the flip up";
  for (const auto& w : status.weights.workers)
    EXPECT_TRUE(w.prepared);
  EXPECT_EQ(plain(collect(open, "open")), at_epoch(truth_of(1), 0));
  EXPECT_EQ(served.get().epoch, 1u);
  EXPECT_EQ(plain(collect(late, "second")), at_epoch(truth_of(5), 1));
}

/// Runs a batch through two flips at chunk edges and checks every span.
void flip_at_edges(const std::string& key, const std::function<void(wire::submit_batch&)>& change,
                   fake_device device) {
  SCOPED_TRACE(key);
  device.step_time = 500us;
  cluster c;
  c.add_worker(device);
  c.add_worker(device);
  wait_for_ready(c, 2);
  auto client = connect(c);
  auto batch = sample_batch(key);
  batch.chunk_tokens = 16;
  change(batch);
  ASSERT_TRUE(client.submit(batch));
  auto sender = connect(c);
  auto served = std::async(std::launch::async, [&] {
    std::this_thread::sleep_for(30ms);
    must_update(sender, five, {.flip = wire::weight_flip::chunk_edge});
    std::this_thread::sleep_for(20ms);
    return must_update(sender, {{"fake.b", 6}},
                       {.changed_only = true, .flip = wire::weight_flip::chunk_edge});
  });
  const auto got = collect(client, key);
  EXPECT_EQ(served.get().epoch, 2u);
  EXPECT_EQ(got.size(), 48u);
  EXPECT_GT(check_spans(got, batch, {{0, 1}, {1, 5}, {2, 5 ^ 6}}), 5u)
    << "too few responses saw a flip for this to prove anything";
}

TEST(weights, flip_at_chunk_edges_and_each_span_is_of_its_epoch) {
  flip_at_edges("plain", [](auto&) {}, {});
  flip_at_edges("moving", [](auto& b) { b.force_migration = true; }, {});
  fake_device tight;
  tight.kv_blocks = 40;
  flip_at_edges(
    "tight", [](auto&) {}, tight);
}

TEST(weights, of_another_version_than_a_batch_requires_end_it) {
  cluster c;
  c.add_worker(slow_device());
  wait_for_ready(c, 1);
  auto sender = connect(c);
  must_update(sender, five);
  auto batch = sample_batch("wrong");
  batch.required_weight_version = 0;
  const auto refused = sender.submit(batch);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, errc::stale_epoch) << refused.error().detail;
  auto client = connect(c);
  batch.batch_key = "open";
  batch.required_weight_version = 1;
  batch.chunk_tokens = 16;
  ASSERT_TRUE(client.submit(batch));
  must_update(sender, {{"fake.b", 6}},
              {.changed_only = true, .flip = wire::weight_flip::chunk_edge});
  std::uint64_t sequence = 0;
  for (;;) {
    const auto event = client.next_event(10s);
    ASSERT_TRUE(event) << event.error().detail;
    if (const auto* r = std::get_if<wire::response_ready>(&*event)) {
      ASSERT_TRUE(client.ack("open", ++sequence));
      for (const auto& span : r->weight_versions)
        EXPECT_EQ(span.version, 1u) << "it asked for that and nothing else";
      continue;
    }
    const auto* failed = std::get_if<wire::request_failed>(&*event);
    ASSERT_NE(failed, nullptr) << "it cannot have ended well";
    EXPECT_EQ(failed->code, errc::stale_epoch) << failed->message;
    EXPECT_EQ(failed->batch_key, "open");
    break;
  }
  EXPECT_EQ(plain(run(c, sample_batch("next"))), at_epoch(truth_of(5 ^ 6), 2))
    << "nothing is left of it";
}

TEST(weights, are_fed_to_a_worker_that_joins_with_older_ones) {
  cluster c;
  c.add_worker(slow_device());
  wait_for_ready(c, 1);
  auto client = connect(c);
  must_update(client, {{"fake.b", 6}}, {.changed_only = true});
  must_update(client, {{"fake.a", 8}}, {.changed_only = true});
  auto open = connect(c);
  ASSERT_TRUE(open.submit(sample_batch("open")));
  auto sender = connect(c);
  auto served = std::async(std::launch::async, [&] {
    return must_update(sender, {{"fake.b", 9}}, {.changed_only = true});
  });
  wait_for_phase(c, "waiting");
  c.add_worker(slow_device()); // At the checkpoint that all were started from.
  const auto status = wait_for(
    c, [](const auto& s) { return s.workers.size() == 2; }, "the second worker");
  EXPECT_EQ(in_state(status, "stale"), 1u) << "it lacks two epochs and the third is on its way";
  EXPECT_EQ(plain(collect(open, "open")), at_epoch(truth_of(8 ^ 6), 2));
  EXPECT_EQ(served.get().workers, 1u) << "the late one is fed after the flip";
  const auto after = wait_for_ready(c, 2);
  for (const auto& w : after.workers)
    EXPECT_EQ(w.epoch, 3u) << w.name;
  auto batch = sample_batch("both");
  batch.chunk_tokens = 16;
  batch.force_migration = true;
  wire::batch_summary summary;
  EXPECT_EQ(plain(run(c, batch, &summary)), at_epoch(truth_of(8 ^ 9), 3));
  ASSERT_EQ(summary.workers.size(), 2u);
  for (const auto& w : summary.workers)
    EXPECT_GT(w.tokens, 0u) << w.name;
}

TEST(weights, roll_back_on_a_worker_that_was_fed) {
  cluster c;
  c.add_worker();
  wait_for_ready(c, 1);
  auto client = connect(c);
  must_update(client, {{"fake.b", 6}}, {.changed_only = true});
  c.add_worker(); // Fed, so it never served the epoch before as such.
  wait_for_ready(c, 2);
  const auto back = client.rollback_weights(20s);
  ASSERT_TRUE(back) << back.error().detail;
  EXPECT_EQ(back->epoch, 0u);
  EXPECT_EQ(back->workers, 2u) << "what it was started from is what it goes back to";
  wait_for_ready(c, 2);
  EXPECT_EQ(plain(run(c, sample_batch("back"))), at_epoch(truth_of(1), 0));
  must_update(client, five);
  const auto second = must_update(client, {{"fake.b", 9}}, {.changed_only = true});
  EXPECT_EQ(second.workers, 2u);
  c.add_worker();
  wait_for_ready(c, 3);
  const auto again = client.rollback_weights(20s);
  ASSERT_TRUE(again) << again.error().detail;
  EXPECT_EQ(again->workers, 3u) << "the third is fed the tensors of the epoch before";
  for (const auto& phase : again->phases)
    EXPECT_LT(phase.seconds, 2.0) << phase.phase << ": it asked one who keeps no tensors";
  EXPECT_EQ(plain(run(c, sample_batch("again"))), at_epoch(truth_of(5), again->epoch));
}

TEST(weights, that_a_new_scheduler_never_saw_leave_an_old_worker_aside) {
  cluster c; // As after a restart: its workers serve epoch 3, it holds no tensors.
  fake_device at_three;
  at_three.weights = 5;
  c.add_worker(at_three, 8, 5s, 3);
  wait_for_ready(c, 1);
  c.add_worker(); // Restarted from the checkpoint.
  const auto status = wait_for(
    c, [](const auto& s) { return s.workers.size() == 2; }, "the second worker");
  EXPECT_EQ(status.weight_version, 3u);
  std::this_thread::sleep_for(100ms); // It stays aside, and is not sent away.
  auto client = connect(c);
  const auto later = client.status();
  ASSERT_TRUE(later);
  EXPECT_EQ(in_state(*later, "stale"), 1u);
  EXPECT_EQ(plain(run(c, sample_batch("one"))), at_epoch(truth_of(5), 3));
  EXPECT_EQ(must_update(client, {{"fake.a", 8}, {"fake.b", 6}}).workers, 2u)
    << "a complete update takes it along";
  wait_for_ready(c, 2);
  EXPECT_EQ(plain(run(c, sample_batch("two"))), at_epoch(truth_of(8 ^ 6), 4));
}

/// Asks for the log-probabilities of all responses.
wire::score score_of(const results& of, const wire::submit_batch& batch,
                     std::optional<std::uint64_t> epoch = {}) {
  wire::score what;
  what.weight_version = epoch;
  for (const auto& [place, r] : of) {
    const auto& prompt = batch.groups[place.first].prompt_token_ids;
    wire::score_sequence sequence;
    sequence.token_ids = prompt;
    sequence.token_ids.insert(sequence.token_ids.end(), r.token_ids.begin(), r.token_ids.end());
    sequence.prompt_tokens = static_cast<std::uint32_t>(prompt.size());
    what.sequences.push_back(std::move(sequence));
  }
  return what;
}

void expect_scores(const result<wire::scored>& scored, const results& generated,
                   std::uint64_t epoch) {
  ASSERT_TRUE(scored) << scored.error().detail;
  EXPECT_EQ(scored->weight_version, epoch);
  ASSERT_EQ(scored->rows.size(), generated.size());
  auto row = scored->rows.begin();
  for (const auto& [place, r] : generated)
    EXPECT_EQ((row++)->logprobs, r.logprobs) << place.first << ", " << place.second;
}

TEST(weights, score_with_the_bits_of_generation_at_each_epoch_held) {
  cluster c;
  c.add_worker();
  c.add_worker();
  wait_for_ready(c, 2);
  const auto batch = sample_batch("old");
  const auto old = run(c, batch);
  auto client = connect(c);
  expect_scores(client.score(score_of(old, batch), 20s), old, 0);
  must_update(client, five);
  const auto fresh = run(c, sample_batch("new"));
  expect_scores(client.score(score_of(fresh, batch), 20s), fresh, 1);
  expect_scores(client.score(score_of(old, batch, 0), 20s), old, 0);
  expect_scores(client.score(score_of(fresh, batch, 1), 20s), fresh, 1);
  const auto crossed = client.score(score_of(old, batch, 1), 20s);
  ASSERT_TRUE(crossed);
  EXPECT_NE(crossed->rows[0].logprobs, old.begin()->second.logprobs) << "other weights";
  const auto unknown = client.score(score_of(old, batch, 2), 20s);
  ASSERT_FALSE(unknown);
  EXPECT_EQ(unknown.error().code, errc::stale_epoch) << unknown.error().detail;
  c.add_worker(); // Has what is served, not the epoch before as such.
  wait_for_ready(c, 3);
  expect_scores(client.score(score_of(old, batch, 0), 20s), old, 0);
  must_update(client, {{"fake.b", 6}}, {.changed_only = true});
  const auto gone = client.score(score_of(old, batch, 0), 20s);
  ASSERT_FALSE(gone);
  EXPECT_EQ(gone.error().code, errc::stale_epoch) << gone.error().detail;
  EXPECT_EQ(plain(run(c, sample_batch("after"))), at_epoch(truth_of(5 ^ 6), 2))
    << "scoring leaves nothing behind";
  c.add_worker(); // Fed epoch 2; beside it the checkpoint, and not epoch 1 as the others.
  wait_for_ready(c, 4);
  for (int i = 0; i < 3; ++i)
    expect_scores(client.score(score_of(fresh, batch, 1), 20s), fresh, 1);
}

TEST(weights, score_although_a_worker_leaves_half_way) {
  cluster c;
  c.add_worker(slow_device(2ms), 8, 0ms);
  c.add_worker(slow_device(2ms));
  wait_for_ready(c, 2);
  const auto batch = sample_batch("scored");
  const auto made = run(c, batch);
  auto what = score_of(made, batch);
  auto twice = what.sequences;
  for (int i = 0; i < 40; ++i)
    what.sequences.insert(what.sequences.end(), twice.begin(), twice.end());
  auto client = connect(c);
  auto scored = std::async(std::launch::async, [&] { return client.score(what, 20s); });
  std::this_thread::sleep_for(50ms);
  c.workers[0].request_stop();
  c.workers[0].join();
  EXPECT_EQ(scored.wait_for(0s), std::future_status::timeout) << "it was over before the loss";
  auto all = scored.get();
  ASSERT_TRUE(all) << all.error().detail;
  EXPECT_EQ(all->rows.size(), what.sequences.size());
  all->rows.resize(made.size());
  expect_scores(all, made, 0);
}

TEST(weights, flip_while_serving_is_paused_and_pausing_stops_it) {
  cluster c;
  c.add_worker(slow_device());
  wait_for_ready(c, 1);
  auto client = connect(c);
  ASSERT_TRUE(client.pause_serving());
  auto batch = sample_batch("paused");
  auto receiver = connect(c);
  ASSERT_TRUE(receiver.submit(batch));
  must_update(client, five, {.flip = wire::weight_flip::chunk_edge});
  const auto status = client.status();
  ASSERT_TRUE(status);
  EXPECT_TRUE(status->weights.paused);
  ASSERT_EQ(status->batches.size(), 1u);
  EXPECT_EQ(status->batches[0].running + status->batches[0].finished, 0u);
  EXPECT_EQ(status->weights.epoch, 1u) << "nothing had to end for the flip";
  ASSERT_TRUE(client.resume_serving());
  EXPECT_EQ(plain(collect(receiver, "paused")), at_epoch(truth_of(5), 1));
}

} // namespace
} // namespace rollcast::test
