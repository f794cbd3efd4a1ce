// Goal: a cluster whose workers move KV and weights by a group of devices gives the same responses
// and weights as one without, also when a rank dies inside a round, and forms a group again; a
// worker whose device hangs can be stopped all the same.
// Method: whole clusters with real sockets in one process (real_cluster.hpp), whose workers have
// devices on a pretended fabric; the results are compared with those of a cluster without one.

#include "tests/support/pretend_fabric.hpp"
#include "tests/unit/actors/weight_fixture.hpp"

#include <atomic>

namespace rollcast::test {
namespace {

using namespace std::chrono_literals;

/// Its thread hangs when it is asked for an id, until it is let go.
struct hung_maker final : communicator_maker {
  const std::string& device() const noexcept override { return name; }
  result<std::string> new_id() override {
    asked = true;
    let.wait(false);
    return fail(errc::peer_lost, "let go");
  }
  result<std::unique_ptr<communicator>> form(const std::string&, std::uint32_t,
                                             std::uint32_t) override {
    return fail(errc::peer_lost, "never");
  }
  std::string name = "hung";
  std::atomic<bool> asked{false}, let{false};
};

struct collectives_test : testing::Test {
  collectives_test() {
    scheduler_options options;
    options.tick_interval = 20ms;
    options.collectives.pause = 50ms;
    options.collectives.round_max = 1s;
    sut.emplace(options);
  }
  void add_worker(const std::string& name) { sut->add_worker({}, 8, 5s, 0, fabric.device(name)); }
  /// A batch in which every chunk goes to another worker.
  results moving(wire::batch_summary* summary = nullptr) {
    auto batch = sample_batch("moving " + std::to_string(++batches));
    batch.chunk_tokens = 16;
    batch.force_migration = true;
    return plain(run(*sut, batch, summary));
  }
  /// Runs batches until one has used the fabric. @returns whether one did
  bool moves_by_group() {
    const auto before = fabric.operations();
    for (const auto until = std::chrono::steady_clock::now() + 20s;
         std::chrono::steady_clock::now() < until && fabric.operations() == before;)
      EXPECT_TRUE(moving() == truth_of(1));
    return fabric.operations() > before;
  }

  pretend_fabric fabric; ///< Outlives the workers.
  std::optional<cluster> sut;
  int batches = 0;
};

TEST_F(collectives_test, gives_the_same_responses_when_kv_moves_by_the_group) {
  add_worker("a");
  add_worker("b");
  ASSERT_TRUE(moves_by_group());
  const auto before = fabric.operations();
  wire::batch_summary summary;
  EXPECT_TRUE(moving(&summary) == truth_of(1));
  EXPECT_GT(summary.migrations, 20u);
  EXPECT_GT(fabric.operations(), before + 10) << "two ranks a round";
}

TEST_F(collectives_test, gives_the_same_responses_when_a_rank_dies_inside_a_round) {
  for (const bool tell : {true, false}) {
    const auto suffix = tell ? std::string{" that is told of"} : std::string{" in silence"};
    add_worker("a" + suffix);
    add_worker("b" + suffix);
    ASSERT_TRUE(moves_by_group());
    std::atomic<bool> over{false};
    std::jthread killer{[&, from = fabric.operations()] {
      while (!over && fabric.operations() < from + 6)
        std::this_thread::sleep_for(1ms);
      fabric.kill("b" + suffix, tell);
    }};
    EXPECT_TRUE(moving() == truth_of(1));
    over = true;
    killer.join();
    EXPECT_TRUE(moving() == truth_of(1)) << "by ZeroMQ, until a group forms";
    sut->workers.back().request_stop();
    sut->workers.pop_back();
  }
  add_worker("c");
  EXPECT_TRUE(moves_by_group()) << "those whose devices live form a group again";
}

TEST_F(collectives_test, gives_the_same_responses_when_bytes_arrive_wrong) {
  add_worker("a");
  add_worker("b");
  ASSERT_TRUE(moves_by_group());
  fabric.corrupt(true);
  EXPECT_TRUE(moving() == truth_of(1));
}

TEST_F(collectives_test, workers_that_share_a_device_form_no_group) {
  add_worker("one");
  add_worker("one");
  for (int i = 0; i < 3; ++i)
    EXPECT_TRUE(moving() == truth_of(1));
  EXPECT_EQ(fabric.operations(), 0u);
}

TEST_F(collectives_test, a_worker_whose_group_hangs_can_be_stopped) {
  const auto device = std::make_shared<hung_maker>();
  std::atomic<int> abandoned{0};
  worker_node_options options;
  options.scheduler_port = sut->ports.cluster_port;
  options.drain_ms_max = 1s;
  options.collectives = device;
  options.collective_limits.turn_max = 200ms;
  options.abandon = [&](const result<void>& ended) {
    EXPECT_TRUE(ended);
    ++abandoned; // a process would end here
  };
  std::jthread worker{[&](std::stop_token stop) {
    EXPECT_TRUE(run_worker(options, std::make_unique<fake_backend>(), stop));
  }};
  wait_for_ready(*sut, 1); // so it is the first of the group
  add_worker("b");
  for (const auto until = std::chrono::steady_clock::now() + 20s;
       std::chrono::steady_clock::now() < until && !device->asked;)
    std::this_thread::sleep_for(1ms);
  EXPECT_TRUE(device->asked);
  worker.request_stop();
  for (const auto until = std::chrono::steady_clock::now() + 20s;
       std::chrono::steady_clock::now() < until && abandoned == 0;)
    std::this_thread::sleep_for(1ms);
  EXPECT_EQ(abandoned, 1);
  device->let = true;
  device->let.notify_all();
  worker.join();
}

TEST_F(collectives_test, casts_new_weights_to_the_group) {
  for (const auto* device : {"a", "b", "c"})
    add_worker(device);
  wait_for_ready(*sut, 3);
  ASSERT_TRUE(moves_by_group());
  for (const bool wrong : {false, true}) { // then they come along the chain
    fabric.corrupt(wrong);
    const auto before = fabric.operations();
    const std::uint64_t seed = wrong ? 7 : 5;
    auto client = connect(*sut);
    const auto served = must_update(client, {{"fake.a", seed}, {"fake.b", 0}});
    EXPECT_EQ(served.workers, 3u);
    EXPECT_GE(fabric.operations(), before + 3) << "all take part in a cast";
    fabric.corrupt(false);
    EXPECT_TRUE(moving() == at_epoch(truth_of(seed), served.epoch));
  }
}

} // namespace
} // namespace rollcast::test
