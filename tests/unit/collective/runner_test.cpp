// Goal: whatever is asked of a runner ends, also when it stops before it has begun; orders for this
// worker count also if they come before it knows that it is meant, and those for others never.
// Method: a runner over a pretended fabric, or over a device that does not answer until it is told.

#include "cluster/collective/runner.hpp"
#include "tests/support/pretend_fabric.hpp"

#include <gtest/gtest.h>

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
  sut->fetch(7, std::make_shared<std::vector<std::byte>>(8),
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

} // namespace
} // namespace rollcast::collective
