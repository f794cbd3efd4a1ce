// Goal: a KV image that may go by a group of devices does, with the checks of the other way; what
// the group does not bring, or brings wrong, goes by ZeroMQ within the same pull.
// Method: two exchanges on loopback, two runners over a pretended fabric, a coordinator that is
// told of everything at once.

#include "cluster/collective/coordinator.hpp"
#include "cluster/collective/runner.hpp"
#include "cluster/transport/kv_exchange.hpp"
#include "tests/support/pretend_fabric.hpp"

#include <gtest/gtest.h>

#include <future>

namespace rollcast::collective {
namespace {

using namespace std::chrono_literals;

const std::vector<token_id> tokens{5, 6, 7, 8, 9};

struct carry_test : testing::Test {
  struct node {
    std::shared_ptr<runner> group;
    std::unique_ptr<kv_exchange> exchange;
  };

  carry_test() {
    for (std::uint64_t w = 1; w <= 2; ++w) {
      auto& n = nodes[w];
      const auto device = "device " + std::to_string(w);
      n.group = std::make_shared<runner>(fabric.device(device),
                                         member_limits{.round_max = 200ms, .fetch_max = 200ms});
      n.group->serve({w}, [this](news what) {
        const std::scoped_lock lock{mutex};
        if (stopping)
          return;
        boss.on(what, 0s);
        obey();
      });
      kv_exchange_options options;
      options.part_bytes = 1'000;
      options.idle_ms_max = 2s;
      options.carrier = n.group;
      n.exchange = *kv_exchange::open(options, [this, w](const kv_request&, const kv_ticket& t) {
        nodes.at(w).exchange->answer(t, std::shared_ptr<const kv_image>{image});
      });
      boss.joined({w}, device, 0s);
    }
    const std::scoped_lock lock{mutex};
    boss.turn(10s);
    obey();
  }
  ~carry_test() override {
    {
      const std::scoped_lock lock{mutex};
      stopping = true;
    }
    for (auto& [w, n] : nodes)
      n.exchange.reset(); // before those that they call
  }

  /// @pre the mutex is held
  void obey() {
    for (auto& o : boss.drain())
      nodes.at(o.to.value).group->obey(o.to, std::move(o.what));
  }
  /// Waits until both are in an open group, or until neither is.
  bool wait_open(bool open = true) {
    for (int i = 0; i < 10'000; ++i) {
      if ((nodes[2].group->reaches({1}) == worker_id{2}) == open
          && (nodes[1].group->reaches({2}) == worker_id{1}) == open)
        return true;
      std::this_thread::sleep_for(1ms);
    }
    return false;
  }
  result<kv_image> pull() {
    std::promise<result<kv_image>> promise;
    auto future = promise.get_future();
    nodes[2].exchange->pull(nodes[1].exchange->endpoint(), {{1}, {77}}, tokens,
                            [&](result<kv_image> got) { promise.set_value(std::move(got)); });
    if (future.wait_for(10s) != std::future_status::ready)
      std::terminate(); // the promise is on this stack
    return future.get();
  }
  static std::shared_ptr<kv_image> sound_image() {
    auto out = std::make_shared<kv_image>();
    for (std::size_t i = 0; i < 10'500; ++i)
      out->bytes.push_back(static_cast<std::byte>(i * 131 >> 3));
    out->manifest = {{77},
                     4,
                     out->bytes.size(),
                     hash_of(std::span<const token_id>{tokens}.first(4)),
                     hash_bytes(out->bytes)};
    return out;
  }

  test::pretend_fabric fabric;
  std::shared_ptr<const kv_image> image = sound_image();
  std::mutex mutex; ///< Of the coordinator.
  coordinator boss;
  bool stopping = false;
  std::map<std::uint64_t, node> nodes;
};

TEST_F(carry_test, goes_by_the_group_once_that_is_open) {
  ASSERT_TRUE(wait_open());
  const auto got = pull();
  ASSERT_TRUE(got) << got.error().detail;
  EXPECT_TRUE(got->carried);
  EXPECT_EQ(got->bytes, image->bytes);
  EXPECT_EQ(nodes[2].exchange->counts().carried.load(), 1u);
  EXPECT_EQ(nodes[1].exchange->counts().bytes_out.load(), 0u) << "not by ZeroMQ";
}

TEST_F(carry_test, goes_by_zeromq_when_the_holder_dies_inside_the_round) {
  ASSERT_TRUE(wait_open());
  fabric.kill("device 1", false); // its process serves ZeroMQ still
  const auto got = pull();
  ASSERT_TRUE(got) << got.error().detail;
  EXPECT_FALSE(got->carried);
  EXPECT_TRUE(got->fell_back);
  EXPECT_EQ(got->bytes, image->bytes);
  EXPECT_TRUE(wait_open(false)) << "the epoch is over";
}

TEST_F(carry_test, goes_by_zeromq_when_the_bytes_are_wrong) {
  ASSERT_TRUE(wait_open());
  fabric.corrupt(true);
  const auto got = pull();
  ASSERT_TRUE(got) << got.error().detail;
  EXPECT_TRUE(got->fell_back);
  EXPECT_EQ(got->bytes, image->bytes);
  EXPECT_NE(nodes[2].group->reaches({1}), worker_id{}) << "the group itself did not fail";
}

TEST_F(carry_test, asks_the_group_for_nothing_before_it_is_open_or_after_it_has_ended) {
  fabric.stall(true);
  EXPECT_TRUE(pull());
  fabric.stall(false);
  ASSERT_TRUE(wait_open());
  nodes[1].group->serve({}, {});
  const auto got = pull();
  ASSERT_TRUE(got) << got.error().detail;
  EXPECT_EQ(got->bytes, image->bytes);
}

/// Takes everything and never says how it ended, as where a library's call does not return.
struct silent_carrier final : kv_carrier {
  worker_id reaches(worker_id) const override { return {2}; }
  void fetch(std::uint64_t, memory, done_function) override { ++fetches; }
  void give(worker_id, std::uint64_t, std::shared_ptr<const kv_image>) override {}
  std::atomic<int> fetches = 0;
};

TEST_F(carry_test, goes_by_zeromq_when_the_carrier_never_answers) {
  const auto carrier = std::make_shared<silent_carrier>();
  kv_exchange_options options;
  options.carry_ms_max = 300ms;
  options.carrier = carrier;
  nodes[2].exchange = *kv_exchange::open(options, [](const kv_request&, const kv_ticket&) {});
  const auto got = pull();
  ASSERT_TRUE(got) << got.error().detail;
  EXPECT_EQ(carrier->fetches, 1);
  EXPECT_TRUE(got->fell_back);
  EXPECT_FALSE(got->carried);
  EXPECT_EQ(got->bytes, image->bytes);
}

} // namespace
} // namespace rollcast::collective
