// Goal: workers on one GPU are never put in one collective group, whatever their hosts are called;
// orders of a group reach a worker whose engine scores; an order for an update is read only if it
// says a way that there is, and news of one only if their kind and code are known.
// Method: the scheduler on CAF's test coordinator, with seats that record; then a real worker on
// CAF's threads, whose device holds a pass until the test lets it go.

#include "actors/collective_seat.hpp"
#include "actors/decode_worker.hpp"
#include "engine/backend/forwarding_backend.hpp"
#include "tests/support/pretend_fabric.hpp"
#include "tests/unit/actors/fake_backend.hpp"
#include "tests/unit/actors/scheduler_fixture.hpp"

#include <deque>
#include <future>

namespace rollcast::test {
namespace {

using orders = std::vector<collective::order>;

collective_seat_actor::behavior_type recording_seat(collective_seat_actor::pointer, orders* log) {
  return {[log](worker_id, const collective::order& o) { log->push_back(o); }};
}

struct collective_seat_test : scheduler_test {
  /// A worker with a GPU. @returns the orders that it will have got.
  const orders& add(const std::string& host, const std::string& gpu) {
    auto hello = plain_hello();
    hello.host = host;
    hello.collective_device = gpu;
    hello.collective_seat = spawn(recording_seat, &heard.emplace_back());
    add_worker(logs.emplace_back(), hello);
    return heard.back();
  }

  std::deque<worker_log> logs;
  std::deque<orders> heard;
};

TEST_F(collective_seat_test, two_pods_on_one_gpu_form_no_group) {
  const auto& first = add("pod-a", "GPU-1");
  const auto& second = add("pod-b", "GPU-1");
  pass(5s);
  EXPECT_TRUE(first.empty() && second.empty());
  add("pod-a", "GPU-2");
  pass(5s);
  ASSERT_EQ(first.size(), 1u);
  EXPECT_EQ(first[0].kind, collective::order_kind::make_id);
  EXPECT_TRUE(second.empty());
}

/// A scheduler that registers one worker and tells of the first news of its group.
registry_actor::behavior_type lone_scheduler(registry_actor::pointer,
                                             std::promise<collective::news>* heard) {
  return {
    [](atom::hello, const worker_hello&) { return worker_id{1}; },
    [](atom::report, const chunk_outcome&) {},
    [](atom::moved, worker_id, response_id, std::uint32_t, std::uint64_t, bool) {},
    [heard](const collective::news& what) { heard->set_value(what); },
    [](atom::lost, worker_id, response_id, std::uint32_t) {},
    [](atom::failed, worker_id, response_id, std::uint32_t, const std::string&) {},
    [](atom::failed, worker_id, const std::string&) {},
    [](atom::beat, const worker_beat&) { return caf::ok_atom_v; },
    [](atom::weights, const weight_news&) {},
    [](atom::drain, worker_id) { return caf::ok_atom_v; },
  };
}

/// Holds every pass until it is let go.
struct held_device final : forwarding_backend {
  using forwarding_backend::forwarding_backend;
  void forward(const forward_rows& rows) override {
    if (!std::exchange(began, true))
      begins.set_value();
    let.wait();
    forwarding_backend::forward(rows);
  }
  bool began = false;
  std::promise<void> begins;
  std::promise<void> lets;
  std::shared_future<void> let = lets.get_future().share();
};

TEST(collective_seat, has_orders_obeyed_while_the_engine_scores) {
  caf::actor_system_config config;
  config.add_message_types<caf::id_block::rollcast>();
  std::promise<collective::news> heard;
  pretend_fabric fabric;
  caf::actor_system system{config};
  auto owned = std::make_unique<held_device>(std::make_unique<fake_backend>());
  auto& device = *owned;
  const auto group = std::make_shared<collective::runner>(fabric.device("a"));
  const auto pulse = std::make_shared<worker_pulse>();
  const auto spilled = std::shared_ptr<spill_store>{std::move(*spill_store::open({0, 0, {}}, 128))};
  const auto boss = system.spawn(lone_scheduler, &heard);
  const auto seat = system.spawn(collective_seat, group);
  decode_worker_parts parts{std::make_shared<engine>(std::move(owned), engine_limits{}),
                            spilled,
                            nullptr,
                            nullptr,
                            std::make_shared<worker_metrics>("test"),
                            pulse};
  parts.collectives = group;
  const auto worker = system.spawn(decode_worker, parts, decode_worker_options{});
  caf::anon_send(worker, atom::join_v, boss);
  for (const auto until = std::chrono::steady_clock::now() + 10s;
       pulse->link() != link_state::up && std::chrono::steady_clock::now() < until;)
    std::this_thread::sleep_for(1ms);
  EXPECT_EQ(pulse->link(), link_state::up);
  if (pulse->link() == link_state::up) {
    caf::scoped_actor self{system};
    const std::vector<token_id> tokens{11, 12, 13};
    auto scored = self->request(
      worker, 30s, atom::score_v,
      score_order{{1}, 0, {{to_bytes(std::span{tokens}), 1, std::bit_cast<std::uint32_t>(1.0f)}}});
    device.begins.get_future().wait();
    caf::anon_send(seat, worker_id{1},
                   collective::order{.kind = collective::order_kind::make_id, .epoch = 7});
    auto news = heard.get_future();
    const bool came = news.wait_for(10s) == std::future_status::ready;
    EXPECT_TRUE(came) << "it waits behind the scores";
    device.lets.set_value();
    scored.receive([](const std::string& all) { EXPECT_EQ(all.size(), 2 * sizeof(float)); },
                   [](const caf::error& why) { ADD_FAILURE() << caf::to_string(why); });
    EXPECT_EQ(came ? news.get().epoch : 0, 7u);
  }
  for (const auto& actor : {caf::actor_cast<caf::actor>(worker), caf::actor_cast<caf::actor>(seat),
                            caf::actor_cast<caf::actor>(boss)})
    caf::anon_send_exit(actor, caf::exit_reason::user_shutdown);
}

TEST(weight_order, is_read_only_if_its_way_is_one_that_there_is) {
  caf::actor_system_config config;
  config.add_message_types<caf::id_block::rollcast>();
  caf::actor_system system{config};
  weight_order sent;
  sent.update = 5;
  sent.way = weight_way::waits;
  std::vector<char> bytes;
  caf::binary_serializer sink{system, bytes};
  ASSERT_FALSE(sink(sent));
  for (const bool known : {true, false}) {
    if (!known)
      bytes.back() =
        static_cast<std::decay_t<decltype(bytes.back())>>(3); // the way is written last
    weight_order got;
    caf::binary_deserializer source{system, bytes};
    EXPECT_EQ(!source(got), known);
    EXPECT_EQ(got.way, known ? weight_way::waits : weight_way::chain);
  }
}

TEST(weight_news, is_read_only_if_its_kind_and_code_are_some_that_there_are) {
  caf::actor_system_config config;
  config.add_message_types<caf::id_block::rollcast>();
  caf::actor_system system{config};
  const auto read = [&](std::uint8_t kind, errc code) {
    weight_news sent;
    sent.kind = kind;
    sent.code = static_cast<std::uint8_t>(code);
    std::vector<char> bytes;
    caf::binary_serializer sink{system, bytes};
    EXPECT_FALSE(sink(sent));
    weight_news got;
    caf::binary_deserializer source{system, bytes};
    return !source(got);
  };
  constexpr auto last = static_cast<std::uint8_t>(weight_news_kind::flipped);
  EXPECT_TRUE(read(0, errc::ok));
  EXPECT_TRUE(read(last, errc::not_permitted));
  EXPECT_FALSE(read(last + 1, errc::ok));
  EXPECT_FALSE(read(0, static_cast<errc>(200)));
}

} // namespace
} // namespace rollcast::test
