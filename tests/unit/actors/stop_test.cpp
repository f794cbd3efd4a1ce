// Goal: whoever is told to stop leaves well: a worker within its grace, with every token that it
// chose known to the scheduler and its KV with its peers; a scheduler with all workers' edges.
// Method: clusters in one process whose chunks last far longer than the grace. Devices count the
// tokens that they choose: what a batch has is what was chosen, so none was chosen twice.

#include "engine/backend/forwarding_backend.hpp"
#include "tests/unit/actors/real_cluster.hpp"

#include <atomic>

namespace rollcast::test {
namespace {

using namespace std::chrono_literals;
using steady = std::chrono::steady_clock;

/// Counts every token that is chosen.
class counting_backend final : public forwarding_backend {
public:
  counting_backend(fake_device how, std::atomic<std::uint64_t>& chosen)
    : forwarding_backend(std::make_unique<fake_backend>(how)), chosen_(chosen) {}
  void sample(std::span<const kernels::sample_params> how,
              std::span<kernels::sampled_token> out) override {
    forwarding_backend::sample(how, out);
    chosen_ += out.size();
  }

private:
  std::atomic<std::uint64_t>& chosen_;
};

struct stopping : testing::Test {
  std::jthread start_worker(std::uint16_t port, std::chrono::milliseconds drain) {
    worker_node_options options;
    options.scheduler_port = port;
    options.drain_ms_max = drain;
    return std::jthread{[this, options](std::stop_token stop) {
      fake_device device;
      device.step_time = 2ms;
      const auto ended =
        run_worker(options, std::make_unique<counting_backend>(device, chosen), stop);
      EXPECT_TRUE(ended) << ended.error().detail;
    }};
  }

  /// Eight responses of 400 tokens each, in one chunk each: 0.8 s or more.
  static wire::submit_batch batch() {
    wire::submit_batch out;
    out.batch_key = "stopping";
    out.seed = 5;
    out.sampling.max_new_tokens = 400;
    out.sampling.min_new_tokens = 400;
    out.chunk_tokens = 0;
    for (int g = 0; g < 4; ++g) {
      auto& group = out.groups.emplace_back();
      group.group_size = 2;
      group.prompt_token_ids = {1 + g, 2, 3};
    }
    return out;
  }

  static results truth() {
    cluster c;
    c.add_worker();
    return plain(run(c, batch()));
  }

  void wait_for_chosen(std::uint64_t tokens) const {
    const auto until = steady::now() + 10s;
    while (chosen < tokens && steady::now() < until)
      std::this_thread::sleep_for(1ms);
    ASSERT_GE(chosen, tokens);
  }

  static steady::duration stop(std::jthread& node) {
    const auto begin = steady::now();
    node.request_stop();
    node.join();
    return steady::now() - begin;
  }

  static void wait_for_workers(const cluster& c, std::size_t count) {
    auto client = connect(c);
    for (int tries = 0; tries < 1'000; ++tries, std::this_thread::sleep_for(5ms))
      if (client.status()->workers.size() == count)
        return;
    FAIL() << "no " << count << " workers";
  }

  std::atomic<std::uint64_t> chosen{0};
};

TEST_F(stopping, a_worker_hands_its_chunks_over_within_its_grace) {
  cluster c;
  auto leaver = start_worker(c.ports.cluster_port, 400ms);
  auto heir = start_worker(c.ports.cluster_port, 5s);
  wait_for_workers(c, 2);
  auto client = connect(c);
  ASSERT_TRUE(client.submit(batch()));
  wait_for_chosen(400);
  EXPECT_LT(stop(leaver), 1s) << "the chunks last longer than the grace";
  wire::batch_summary summary;
  EXPECT_EQ(plain(collect(client, "stopping", &summary)), truth());
  EXPECT_EQ(chosen, summary.tokens) << "a token was chosen twice";
  EXPECT_EQ(summary.migrations, 4u) << "all that it ran";
  EXPECT_EQ(summary.recomputed_tokens, 0u);
}

TEST_F(stopping, the_last_worker_does_not_wait_for_peers_that_are_not_there) {
  cluster c;
  auto only = start_worker(c.ports.cluster_port, 20s);
  auto client = connect(c);
  ASSERT_TRUE(client.submit(batch()));
  wait_for_chosen(400);
  EXPECT_LT(stop(only), 500ms);
  const auto kept = chosen.load();
  EXPECT_LT(kept, 3'000u);
  auto next = start_worker(c.ports.cluster_port, 5s);
  wire::batch_summary summary;
  EXPECT_EQ(plain(collect(client, "stopping", &summary)), truth());
  EXPECT_EQ(chosen, summary.tokens) << "a token was chosen twice";
}

TEST_F(stopping, a_scheduler_has_all_workers_cut_what_they_run) {
  scheduler_node_options options;
  options.frontend.bind = "tcp://127.0.0.1:*";
  options.cluster_port = 0;
  options.metrics_port.reset();
  std::promise<scheduler_ports> ready;
  std::jthread scheduler{[&](std::stop_token stop) {
    EXPECT_TRUE(run_scheduler(options, stop, [&](const auto& p) { ready.set_value(p); }));
  }};
  const auto ports = ready.get_future().get();
  auto worker = start_worker(ports.cluster_port, 5s);
  auto client = wire::controller_client::connect(ports.frontend_endpoint, 5s);
  ASSERT_TRUE(client);
  ASSERT_TRUE(client->submit(batch()));
  wait_for_chosen(400);
  EXPECT_LT(stop(scheduler), 500ms) << "it did not wait for chunks to end";
  const auto then = chosen.load();
  std::this_thread::sleep_for(50ms);
  EXPECT_EQ(chosen, then) << "something runs for nobody";
  EXPECT_LT(then, 3'000u);
  EXPECT_LT(stop(worker), 500ms);
}

} // namespace
} // namespace rollcast::test
