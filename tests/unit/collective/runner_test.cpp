// Goal: whatever is asked of a runner ends, also when it stops before it has begun; orders for this
// worker count also if they come before it knows that it is meant, and those for others never.
// Method: a runner over a pretended fabric, or over a device that does not answer until it is told.

#include "cluster/collective/runner.hpp"
#include "tests/support/pretend_fabric.hpp"

#include <gtest/gtest.h>

#include <atomic>
#include <future>

namespace rollcast::collective {
namespace {

using namespace std::chrono_literals;

/// Makes no id before it is let to.
struct slow_device final : communicator_maker {
  const std::string& device() const noexcept override { return name; }
  result<std::string> new_id() override {
    asked.set_value();
    let.wait();
    return std::string{"id"};
  }
  result<std::unique_ptr<communicator>> form(const std::string&, std::uint32_t,
                                             std::uint32_t) override {
    return fail(errc::peer_lost, "never");
  }
  std::string name = "slow";
  std::promise<void> asked;
  std::promise<void> lets;
  std::shared_future<void> let = lets.get_future().share();
};

/// Forms groups at once, whose end hangs until it is let.
struct hanging_device final : communicator_maker {
  struct group final : communicator {
    explicit group(hanging_device& of) : device(of) {}
    ~group() override { abort(); }
    result<void> exchange(std::vector<rank_transfer>) override { return {}; }
    result<void> broadcast(std::uint32_t, std::span<std::byte>) override { return {}; }
    result<bool> poll() override { return true; }
    void abort() override { device.let.wait(false); }
    hanging_device& device;
  };
  const std::string& device() const noexcept override { return name; }
  result<std::string> new_id() override { return std::string{"id"}; }
  result<std::unique_ptr<communicator>> form(const std::string&, std::uint32_t,
                                             std::uint32_t) override {
    return std::make_unique<group>(*this);
  }
  void go_on() {
    let = true;
    let.notify_all();
  }
  std::string name = "hanging";
  std::atomic<bool> let{false};
};

/// A runner in an open group with worker 2 that hangs once it is told that the group is over.
struct hanging_runner : testing::Test {
  hanging_runner() {
    sut->serve({1}, [](const news&) {});
    sut->obey({1}, {.kind = order_kind::form, .epoch = 1, .members = {{1}, {2}}, .id = "id"});
    obey_until({.kind = order_kind::open, .epoch = 1}, {1});
  }
  ~hanging_runner() override {
    device->go_on();
    sut.reset();
  }
  /// Tells it that until it reaches worker 2 as `who`.
  void obey_until(const order& what, worker_id who) {
    for (const auto until = std::chrono::steady_clock::now() + 10s;
         sut->reaches({2}) != who && std::chrono::steady_clock::now() < until;
         std::this_thread::sleep_for(5ms))
      sut->obey({1}, what);
    EXPECT_EQ(sut->reaches({2}), who);
  }

  std::shared_ptr<hanging_device> device = std::make_shared<hanging_device>();
  std::unique_ptr<runner> sut =
    std::make_unique<runner>(device, member_limits{.turn_max = 1'500ms});
};

order make_id(std::uint64_t epoch) {
  return {.kind = order_kind::make_id, .epoch = epoch};
}

TEST(runner, ends_what_was_asked_for_and_not_begun_when_it_stops) {
  const auto device = std::make_shared<slow_device>();
  auto sut = std::make_unique<runner>(device);
  sut->serve({1}, [](const news&) {});
  sut->obey({1}, make_id(1));
  device->asked.get_future().wait(); // its thread is held here
  std::promise<bool> fetched, awaited;
  const tensor_info tensor{"t", kernels::dtype::f32, {1}, {}};
  sut->fetch(7, std::make_shared<kv_bytes>(8),
             [&](const result<void>& how) { fetched.set_value(how.has_value()); });
  sut->await_weights(3, 1, *weight_cargo::expecting({tensor}),
                     [&](const result<void>& how) { awaited.set_value(how.has_value()); });
  std::jthread stopper{[&] { sut.reset(); }};
  std::this_thread::sleep_for(100ms); // it is told to stop by now
  device->lets.set_value();
  stopper.join();
  for (auto* heard : {&fetched, &awaited}) {
    auto future = heard->get_future();
    ASSERT_EQ(future.wait_for(0s), std::future_status::ready) << "dropped in silence";
    EXPECT_FALSE(future.get());
  }
}

TEST(runner, keeps_orders_that_come_before_it_knows_whom_they_mean) {
  test::pretend_fabric fabric;
  std::vector<news> heard; // the runner's until the promise is kept
  std::promise<void> last;
  runner sut{fabric.device("a")};
  sut.obey({4}, make_id(3)); // of an incarnation that is over
  sut.obey({5}, make_id(9));
  sut.serve({5}, [&](news what) {
    heard.push_back(std::move(what));
    if (heard.back().epoch == 11)
      last.set_value();
  });
  sut.obey({4}, make_id(10));
  sut.obey({5}, make_id(11));
  ASSERT_EQ(last.get_future().wait_for(10s), std::future_status::ready);
  ASSERT_EQ(heard.size(), 2u) << "those of incarnation 4 are for nobody";
  EXPECT_EQ(heard[0].kind, news_kind::id_made);
  EXPECT_EQ(heard[0].epoch, 9u);
  EXPECT_EQ(heard[0].worker, worker_id{5});
}

TEST_F(hanging_runner, reaches_nobody_while_its_thread_hangs) {
  std::this_thread::sleep_for(2s); // longer than `turn_max`
  bool rests = false;
  for (const auto until = std::chrono::steady_clock::now() + 10s;
       !rests && std::chrono::steady_clock::now() < until; std::this_thread::sleep_for(5ms))
    rests = sut->reaches({2}) == worker_id{1};
  EXPECT_TRUE(rests) << "it turns all the same";
  obey_until({.kind = order_kind::abort, .epoch = 1, .why = "a test"}, {});
}

TEST_F(hanging_runner, says_whether_its_thread_ends) {
  sut->obey({1}, {.kind = order_kind::abort, .epoch = 1, .why = "a test"});
  EXPECT_FALSE(sut->stop(50ms));
  device->go_on();
  EXPECT_TRUE(sut->stop(10s));
}

} // namespace
} // namespace rollcast::collective
