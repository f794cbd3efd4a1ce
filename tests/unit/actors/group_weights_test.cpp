// Goal: of an update that goes by the group nobody waits in vain: a worker that should cast it and
// has all of it says so, and one that waits pulls it when the group's thread hangs.
// Method: the worker actor on CAF's test coordinator, where time is a number, a runner over a
// device that does not answer, and a mover of weights that records.

#include "actors/decode_worker.hpp"
#include "tests/unit/actors/deterministic_system.hpp"
#include "tests/unit/actors/fake_backend.hpp"

#include <future>
#include <mutex>

namespace rollcast::test {
namespace {

using namespace std::chrono_literals;

registry_actor::behavior_type plain_scheduler(registry_actor::pointer) {
  return {
    [](atom::hello, const worker_hello&) { return worker_id{1}; },
    [](atom::report, const chunk_outcome&) {},
    [](const collective::news&) {},
    [](atom::moved, worker_id, response_id, std::uint32_t, std::uint64_t, bool) {},
    [](atom::failed, worker_id, response_id, std::uint32_t, const std::string&) {},
    [](atom::failed, worker_id, const std::string&) {},
    [](atom::lost, worker_id, response_id, std::uint32_t) {},
    [](atom::beat, const worker_beat&) { return caf::ok_atom_v; },
    [](atom::weights, const weight_news&) {},
    [](atom::drain, worker_id) { return caf::ok_atom_v; },
  };
}

/// Its thread hangs from its first id on, until it is let go.
struct hung_device final : communicator_maker {
  const std::string& device() const noexcept override { return name; }
  result<std::string> new_id() override {
    asked.set_value();
    let.wait();
    return fail(errc::peer_lost, "let go");
  }
  result<std::unique_ptr<communicator>> form(const std::string&, std::uint32_t,
                                             std::uint32_t) override {
    return fail(errc::peer_lost, "never");
  }
  std::string name = "hung";
  std::promise<void> asked, lets;
  std::shared_future<void> let = lets.get_future().share();
};

struct recording_mover final : weight_mover {
  const std::string& endpoint() const noexcept override { return name; }
  void offer(std::uint64_t, std::shared_ptr<const weight_cargo> cargo) override {
    offered = std::const_pointer_cast<weight_cargo>(cargo);
  }
  void withdraw(std::uint64_t) override {}
  void pull(std::uint64_t, std::string from, std::shared_ptr<weight_cargo> cargo, progress_function,
            done_function) override {
    upstream = std::move(from);
    pulled = std::move(cargo);
  }
  void redirect(std::uint64_t, std::string) override {}
  void cancel(std::uint64_t) override {}
  std::string name = "mover", upstream;
  std::shared_ptr<weight_cargo> offered, pulled;
};

struct group_weights_test : deterministic_system {
  group_weights_test() {
    device = std::make_shared<engine>(std::make_unique<fake_backend>(), engine_limits{});
    decode_worker_parts parts{
      device,  std::shared_ptr<spill_store>{*spill_store::open({0, 0, {}}, 128)},
      nullptr, nullptr,
      metrics, std::make_shared<worker_pulse>()};
    parts.weights = &mover;
    parts.collectives = group;
    worker = spawn(decode_worker, parts, decode_worker_options{});
    self->send(worker, atom::join_v, spawn(plain_scheduler));
    settle();
  }
  ~group_weights_test() override {
    caf::anon_send_exit(worker, caf::exit_reason::user_shutdown);
    settle();
    maker->lets.set_value(); // what the thread says now is for nobody who runs
    group.reset();
  }

  void prepare(weight_way way, std::vector<tensor_info> tensors) {
    weight_order o;
    o.worker = {1};
    o.update = 5;
    o.epoch = 1;
    o.complete = true;
    o.upstream = "upstream";
    o.slice_bytes = 4;
    o.tensors = std::move(tensors);
    o.group_epoch = 3;
    o.way = way;
    self->send(worker, atom::prepare_v, o);
    settle();
  }

  std::shared_ptr<hung_device> maker = std::make_shared<hung_device>();
  std::shared_ptr<collective::runner> group = std::make_shared<collective::runner>(maker);
  std::shared_ptr<worker_metrics> metrics = std::make_shared<worker_metrics>("test");
  std::shared_ptr<engine> device;
  recording_mover mover;
  decode_worker_actor worker;
};

TEST_F(group_weights_test, are_pulled_when_the_thread_of_the_group_hangs) {
  group->obey({1}, {.kind = collective::order_kind::make_id, .epoch = 3});
  maker->asked.get_future().wait();
  const fake_weights wanted{{9, 9}};
  const std::vector<tensor_info> tensors{wanted.tensors().begin(), wanted.tensors().end()};
  prepare(weight_way::waits, tensors);
  ASSERT_TRUE(mover.offered);
  pass(30s);
  ASSERT_TRUE(mover.offered->put(0, std::vector<std::byte>(4))); // a slice has come
  pass(60s);
  EXPECT_FALSE(mover.pulled) << "it has not waited for a minute since then";
  pass(60s);
  ASSERT_TRUE(mover.pulled);
  EXPECT_EQ(mover.upstream, "upstream");
  EXPECT_NE(mover.pulled, mover.offered) << "the thread may go on with that";
  EXPECT_EQ(mover.pulled->bytes_here(), 0u);
}

TEST_F(group_weights_test, that_the_caster_has_already_are_declined) {
  std::promise<collective::news> heard;
  group->serve({1}, [&](const collective::news& what) {
    if (what.kind == collective::news_kind::declined)
      heard.set_value(what);
  });
  const auto served = device->device().weights();
  prepare(weight_way::casts, {served->tensors().begin(), served->tensors().end()});
  auto news = heard.get_future();
  ASSERT_EQ(news.wait_for(10s), std::future_status::ready) << "others wait for it in vain";
  EXPECT_EQ(news.get().slices.update, 5u);
  group->serve({}, {});
  EXPECT_FALSE(mover.pulled) << "it lacks nothing";
}

} // namespace
} // namespace rollcast::test
