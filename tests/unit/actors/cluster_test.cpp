// Goal: a batch gives the same responses however it is scheduled: one worker or two, any chunk
// size, migration forced at every edge, static or context, workers that leave and fail.
// Method: a scheduler node and worker nodes with real sockets in one process, each on its own
// thread, over a device whose tokens betray any lost, doubled or foreign token or KV block; a
// controller collects the results and they are compared with those of the plainest run.

#include "cluster/wire/codec.hpp"
#include "tests/unit/actors/real_cluster.hpp"

#include <gtest/gtest.h>
#include <zmq.hpp>

#include <thread>

namespace rollcast::test {
namespace {

using namespace std::chrono_literals;

/// What one worker without chunks says: the truth of this file.
const results& truth() {
  static const results once = [] {
    cluster c;
    c.add_worker();
    auto batch = sample_batch("truth");
    batch.policy = "static";
    return plain(run(c, batch));
  }();
  return once;
}

TEST(cluster, gives_the_same_responses_for_any_chunk_size_and_policy) {
  ASSERT_EQ(truth().size(), 48u);
  cluster c;
  c.add_worker();
  c.add_worker();
  for (const std::uint32_t chunk : {1u, 16u, 100u, 0u}) {
    auto batch = sample_batch("chunk" + std::to_string(chunk));
    batch.chunk_tokens = chunk;
    batch.policy = "context";
    EXPECT_EQ(plain(run(c, batch)), truth()) << "chunk_tokens " << chunk;
  }
  auto batch = sample_batch("static");
  batch.policy = "static";
  EXPECT_EQ(plain(run(c, batch)), truth());
}

TEST(cluster, gives_the_same_responses_when_every_chunk_moves) {
  cluster c;
  fake_device other;
  other.block_tokens = 32; // images do not depend on the block size
  c.add_worker();
  c.add_worker(other, 5);
  auto batch = sample_batch("moving");
  batch.chunk_tokens = 16;
  batch.force_migration = true;
  wire::batch_summary summary;
  EXPECT_EQ(plain(run(c, batch, &summary)), truth());
  EXPECT_GT(summary.migrations, 20u);
  EXPECT_GT(summary.migrated_bytes, 20u * 128u);
  EXPECT_EQ(summary.recomputed_tokens, 0u) << "every move worked";
  EXPECT_EQ(summary.workers.size(), 2u);
}

TEST(cluster, gives_the_same_responses_when_kv_is_scarce) {
  cluster c;
  fake_device tight;
  tight.kv_blocks = 24; // one response at its longest needs 21
  c.add_worker(tight);
  for (const auto* policy : {"context", "static"}) {
    auto batch = sample_batch(std::string{"tight-"} + policy);
    batch.chunk_tokens = 32;
    batch.policy = policy;
    EXPECT_EQ(plain(run(c, batch)), truth()) << policy;
  }
}

TEST(cluster, gives_the_same_responses_when_workers_come_and_go) {
  cluster c;
  fake_device slow;
  slow.step_time = 300us;
  c.add_worker(slow);
  auto client = connect(c);
  auto batch = sample_batch("coming");
  batch.chunk_tokens = 16;
  ASSERT_TRUE(client.submit(batch));
  std::jthread changes{[&] {
    std::this_thread::sleep_for(50ms);
    c.add_worker(slow);
    std::this_thread::sleep_for(50ms);
    c.workers[0].request_stop();
    c.workers[0].join();
  }};
  EXPECT_EQ(plain(collect(client, batch.batch_key)), truth());
}

TEST(cluster, gives_the_same_responses_when_a_worker_leaves_its_work_behind) {
  cluster c;
  fake_device slow;
  slow.step_time = 1ms;
  c.add_worker(slow, 8, 0ms); // does not wait for its chunks when it is stopped
  c.add_worker(slow);
  auto client = connect(c);
  auto batch = sample_batch("leaving");
  batch.chunk_tokens = 64;
  ASSERT_TRUE(client.submit(batch));
  ASSERT_TRUE(client.next_event(5s));
  auto second = connect(c);
  ASSERT_TRUE(second.resume(batch.batch_key, 0));
  c.workers[0].request_stop();
  EXPECT_EQ(plain(collect(second, batch.batch_key)), truth());
}

TEST(cluster, is_not_held_up_by_a_controller_that_does_not_read) {
  cluster c;
  c.add_worker();
  zmq::context_t context;
  zmq::socket_t deaf{context, zmq::socket_type::dealer};
  deaf.set(zmq::sockopt::linger, 0);
  deaf.set(zmq::sockopt::rcvhwm, 1);
  deaf.connect(c.ports.frontend_endpoint);
  auto batch = sample_batch("deaf");
  deaf.send(zmq::buffer(wire::encode(1, wire::request{batch})));
  for (std::uint64_t id = 2; id < 20'000; ++id) // floods with questions, takes no answer
    deaf.send(zmq::buffer(wire::encode(id, wire::request{wire::get_status{}})),
              zmq::send_flags::dontwait);
  EXPECT_EQ(plain(run(c, sample_batch("other"))), truth());
  auto heir = connect(c);
  ASSERT_TRUE(heir.resume("deaf", 0));
  EXPECT_EQ(plain(collect(heir, "deaf")), truth()) << "nothing of the deaf one's batch is lost";
}

TEST(cluster, waits_for_the_first_worker) {
  cluster c;
  auto client = connect(c);
  auto batch = sample_batch("early");
  const auto accepted = client.submit(batch);
  ASSERT_TRUE(accepted);
  EXPECT_EQ(accepted->responses, 48u);
  EXPECT_EQ(accepted->numerics_profile, "") << "nobody knows yet";
  c.add_worker();
  EXPECT_EQ(plain(collect(client, batch.batch_key)), truth());
}

TEST(cluster, lets_another_controller_resume) {
  cluster c;
  c.add_worker();
  auto batch = sample_batch("resumed");
  batch.chunk_tokens = 16;
  {
    auto first = connect(c);
    ASSERT_TRUE(first.submit(batch));
    ASSERT_TRUE(first.next_event(5s)); // sees a result, acknowledges nothing, and dies
  }
  auto second = connect(c);
  const auto attached = second.resume(batch.batch_key, 0);
  ASSERT_TRUE(attached) << attached.error().detail;
  EXPECT_EQ(attached->first_sequence, 1u);
  EXPECT_EQ(plain(collect(second, batch.batch_key)), truth());
  const auto again = second.submit(batch);
  ASSERT_TRUE(again) << again.error().detail;
  EXPECT_EQ(again->first_sequence, 50u) << "everything was acknowledged: nothing runs twice";
}

TEST(cluster, refuses_what_it_cannot_do_with_the_numbers) {
  cluster c;
  c.add_worker();
  auto client = connect(c);
  for (;;) { // until the worker is there
    const auto status = client.status();
    ASSERT_TRUE(status);
    if (!status->workers.empty())
      break;
    std::this_thread::sleep_for(10ms);
  }
  const auto refused = [&](auto change) {
    auto batch = sample_batch("bad");
    change(batch);
    const auto answer = client.submit(batch);
    return answer ? std::string{"accepted"}
                  : std::string{to_string(answer.error().code)} + ": " + answer.error().detail;
  };
  const auto has = [](const std::string& text, const std::string& part) {
    return text.find(part) != std::string::npos;
  };
  const auto long_prompt = refused([](auto& b) { b.groups[2].prompt_token_ids.assign(2'048, 5); });
  EXPECT_TRUE(has(long_prompt, "bad_prompt") && has(long_prompt, "group 2")
              && has(long_prompt, "2048"))
    << long_prompt;
  const auto foreign = refused([](auto& b) { b.groups[0].prompt_token_ids = {5, 1'000}; });
  EXPECT_TRUE(has(foreign, "bad_prompt") && has(foreign, "1000")) << foreign;
  const auto policy = refused([](auto& b) { b.policy = "magic"; });
  EXPECT_TRUE(has(policy, "bad_config") && has(policy, "magic")) << policy;
  const auto weights = refused([](auto& b) { b.required_weight_version = 9; });
  EXPECT_TRUE(has(weights, "stale_epoch")) << weights;
  ASSERT_TRUE(client.submit(sample_batch("taken")));
  auto other = sample_batch("taken");
  other.seed = 8;
  const auto conflict = client.submit(other);
  ASSERT_FALSE(conflict);
  EXPECT_EQ(conflict.error().code, errc::batch_conflict);
}

TEST(cluster, cancels_a_batch) {
  cluster c;
  fake_device slow;
  slow.step_time = 2ms;
  c.add_worker(slow);
  auto client = connect(c);
  auto batch = sample_batch("cancelled");
  batch.chunk_tokens = 8;
  ASSERT_TRUE(client.submit(batch));
  ASSERT_TRUE(client.next_event(10s));
  ASSERT_TRUE(client.cancel(batch.batch_key));
  std::uint64_t sequence = 1;
  std::size_t cancelled = 0;
  for (;;) {
    const auto event = client.next_event(10s);
    ASSERT_TRUE(event) << event.error().detail;
    ASSERT_TRUE(client.ack(batch.batch_key, ++sequence));
    if (const auto* r = std::get_if<wire::response_ready>(&*event))
      cancelled += r->reason == wire::finish_reason::cancelled ? 1 : 0;
    else
      break;
  }
  EXPECT_GT(cancelled, 0u);
  EXPECT_EQ(plain(run(c, sample_batch("after"))), truth()) << "nothing is left of it";
}

TEST(cluster, survives_garbage_on_the_controllers_port) {
  cluster c;
  c.add_worker();
  zmq::context_t context;
  zmq::socket_t stranger{context, zmq::socket_type::dealer};
  stranger.set(zmq::sockopt::linger, 100);
  stranger.connect(c.ports.frontend_endpoint);
  std::string noise = "garbage";
  for (int i = 0; i < 200; ++i) {
    noise += static_cast<char>(i * 37);
    stranger.send(zmq::buffer(noise),
                  i % 3 == 0 ? zmq::send_flags::sndmore : zmq::send_flags::none);
  }
  EXPECT_EQ(plain(run(c, sample_batch("calm"))), truth());
}

TEST(cluster, refuses_a_worker_with_other_weights) {
  cluster c;
  c.add_worker();
  ASSERT_EQ(plain(run(c, sample_batch("first"))), truth());
  worker_node_options options;
  options.scheduler_port = c.ports.cluster_port;
  fake_device other;
  other.weights = 2;
  const auto ended = run_worker(options, std::make_unique<fake_backend>(other), std::stop_token{});
  ASSERT_FALSE(ended);
  EXPECT_EQ(ended.error().code, errc::numerics_mismatch) << ended.error().detail;
}

TEST(cluster, gives_up_without_a_scheduler) {
  worker_node_options options;
  options.scheduler_port = 1; // nobody listens there
  options.give_up_ms = 200ms;
  const auto ended = run_worker(options, std::make_unique<fake_backend>(), std::stop_token{});
  ASSERT_FALSE(ended);
  EXPECT_EQ(ended.error().code, errc::peer_lost) << ended.error().detail;
}

TEST(cluster, does_not_connect_a_worker_of_another_version) {
  cluster c;
  worker_node_options options;
  options.scheduler_port = c.ports.cluster_port;
  options.version = "0.0.0";
  options.give_up_ms = 500ms;
  const auto ended = run_worker(options, std::make_unique<fake_backend>(), std::stop_token{});
  ASSERT_FALSE(ended);
  EXPECT_NE(ended.error().detail.find("another version"), std::string::npos)
    << ended.error().detail;
}

TEST(cluster, says_which_port_is_in_use) {
  cluster c;
  scheduler_node_options options;
  options.frontend.bind = c.ports.frontend_endpoint;
  options.cluster_port = 0;
  options.metrics_port.reset();
  const auto frontend_taken = run_scheduler(options, std::stop_token{});
  ASSERT_FALSE(frontend_taken);
  EXPECT_EQ(frontend_taken.error().code, errc::address_in_use);
  options.frontend.bind = "tcp://127.0.0.1:*";
  options.cluster_port = c.ports.cluster_port;
  const auto cluster_taken = run_scheduler(options, std::stop_token{});
  ASSERT_FALSE(cluster_taken);
  EXPECT_EQ(cluster_taken.error().code, errc::address_in_use) << cluster_taken.error().detail;
}

} // namespace
} // namespace rollcast::test
