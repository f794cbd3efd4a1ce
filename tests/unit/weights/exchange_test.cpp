// Goal: weights arrive whole or not at all along a chain, every pull ends within its timeout, and
// neither strangers nor dead, silent or lying peers block the others.
// Method: exchanges on loopback, each with its own thread, a middle one destroyed half way; raw
// sockets as upstreams that corrupt, refuse or keep silent, and as pullers that send garbage.

#include "cluster/weights/weight_exchange.hpp"
#include "cluster/weights/weight_frame.hpp"
#include "tests/unit/weights/sample_tensors.hpp"

#include <gtest/gtest.h>
#include <zmq.hpp>

#include <functional>
#include <future>
#include <thread>

namespace rollcast {
namespace {

using namespace std::chrono_literals;

weight_exchange_options quick(std::chrono::milliseconds idle = 400ms) {
  weight_exchange_options options;
  options.idle_ms_max = idle;
  options.wait_every = idle / 5;
  return options;
}

std::unique_ptr<weight_exchange> open(weight_exchange_options options = quick()) {
  auto opened = weight_exchange::open(std::move(options));
  EXPECT_TRUE(opened) << opened.error().detail;
  return std::move(*opened);
}

using ending = std::future<result<void>>;

ending pull(weight_exchange& into, const std::string& from, std::shared_ptr<weight_cargo> cargo,
            weight_exchange::progress_function progress = {}, std::uint64_t update = 1) {
  auto promise = std::make_shared<std::promise<result<void>>>();
  auto future = promise->get_future();
  into.pull(update, from, std::move(cargo), std::move(progress),
            [promise](result<void> how) { promise->set_value(std::move(how)); });
  return future;
}

errc code(ending& f) {
  if (f.wait_for(20s) != std::future_status::ready)
    return errc::io_failed; // never what these tests expect
  const auto got = f.get();
  return got ? errc::ok : got.error().code;
}

/// Waits until `condition` holds; false after a time that only a hung exchange needs.
bool soon(const std::function<bool()>& condition) {
  for (int i = 0; i < 20'000; ++i) {
    if (condition())
      return true;
    std::this_thread::sleep_for(1ms);
  }
  return false;
}

/// An upstream of our making: for each `want`, `answer` says what to send.
class raw_holder {
public:
  using answer_function =
    std::function<void(zmq::socket_t&, const std::string& peer, const weight_frame& want)>;

  explicit raw_holder(answer_function answer) {
    socket_.set(zmq::sockopt::linger, 0);
    socket_.bind("tcp://127.0.0.1:*");
    endpoint = socket_.get(zmq::sockopt::last_endpoint);
    thread_ = std::jthread{[this, answer](const std::stop_token& stop) {
      socket_.set(zmq::sockopt::rcvtimeo, 20);
      while (!stop.stop_requested()) {
        zmq::message_t peer;
        zmq::message_t body;
        if (!socket_.recv(peer) || !socket_.recv(body))
          continue;
        const auto want = decode_weight_frame({body.data<std::byte>(), body.size()});
        if (want)
          answer(socket_, peer.to_string(), *want);
      }
    }};
  }

  static void send(zmq::socket_t& socket, const std::string& peer, const weight_frame& frame,
                   std::span<const std::byte> payload) {
    socket.send(zmq::buffer(peer), zmq::send_flags::sndmore);
    socket.send(zmq::buffer(encode(frame)), zmq::send_flags::sndmore);
    socket.send(zmq::buffer(payload.data(), payload.size()), zmq::send_flags::none);
  }

  std::string endpoint;

private:
  zmq::context_t context_{1};
  zmq::socket_t socket_{context_, zmq::socket_type::router};
  std::jthread thread_;
};

/// Answers every `want` with the slice of `from`, after `change` has had its way with the bytes.
raw_holder::answer_function
changed(std::shared_ptr<weight_cargo> from,
        std::function<void(std::uint32_t slice, std::vector<std::byte>&)> change) {
  return [from, change](zmq::socket_t& socket, const std::string& peer, const weight_frame& want) {
    const auto piece = from->bytes_of_slice(want.slice)->bytes;
    std::vector<std::byte> bytes{piece.begin(), piece.end()};
    change(want.slice, bytes);
    auto answer = want;
    answer.kind = weight_message::slice;
    raw_holder::send(socket, peer, answer, bytes);
  };
}

TEST(weight_exchange, moves_an_update_along_a_chain) {
  const sample_tensors sent{{24u << 20, 4, 9'999'996, 30u << 20, 1'000}};
  const auto source = open(quick(10s));
  source->offer(1, sent.cargo(1u << 20));
  std::vector<std::unique_ptr<weight_exchange>> chain;
  std::vector<std::shared_ptr<weight_cargo>> cargos;
  std::vector<ending> ends;
  std::string upstream = source->endpoint();
  for (int i = 0; i < 3; ++i) {
    chain.push_back(open(quick(10s)));
    cargos.push_back(sent.expected(1u << 20));
    ends.push_back(pull(*chain.back(), upstream, cargos.back()));
    upstream = chain.back()->endpoint();
  }
  for (std::size_t i = 0; i < chain.size(); ++i) {
    EXPECT_EQ(code(ends[i]), errc::ok) << i;
    expect_all_equal(*cargos[i], sent);
    EXPECT_EQ(chain[i]->counts().bytes_in, cargos[i]->bytes_wanted()) << i;
    EXPECT_EQ(chain[i]->counts().slices_repeated, 0u) << i;
  }
  EXPECT_EQ(source->counts().bytes_out, cargos[0]->bytes_wanted()) << "only the first asks it";
}

TEST(weight_exchange, goes_on_from_another_upstream_when_one_dies_half_way) {
  const sample_tensors sent{{20u << 20, 4'000, 12u << 20}};
  const auto source = open(quick(10s));
  source->offer(1, sent.cargo(1u << 20));
  const auto middle_cargo = sent.expected(1u << 20);
  auto middle = open(quick(10s));
  const auto last = open(quick(10s));
  const auto cargo = sent.expected(1u << 20);
  std::atomic<std::uint64_t> here{0};
  // The middle one is slow, so that it is caught half way.
  auto first = pull(*middle, source->endpoint(), middle_cargo,
                    [](auto, auto) { std::this_thread::sleep_for(10ms); });
  auto end = pull(*last, middle->endpoint(), cargo, [&](std::uint64_t now, auto) { here = now; });
  ASSERT_TRUE(soon([&] { return here > (8u << 20); }));
  middle.reset();
  EXPECT_EQ(code(first), errc::cancelled);
  const auto before = source->counts().slices_out.load();
  EXPECT_LT(here, cargo->bytes_wanted());
  last->redirect(1, source->endpoint());
  EXPECT_EQ(code(end), errc::ok);
  expect_all_equal(*cargo, sent);
  EXPECT_EQ(last->counts().slices_repeated, 0u);
  EXPECT_EQ(last->counts().slices_in, cargo->slices()) << "each is taken once";
  EXPECT_LE(source->counts().slices_out - before, cargo->slices() - 8)
    << "the source sends what was missing only";
}

TEST(weight_exchange, takes_up_a_cargo_again_after_a_pull_that_failed) {
  const sample_tensors sent{{1'000'000}};
  const auto source = sent.cargo(10'000);
  const raw_holder dying{[&](auto& socket, const auto& peer, const auto& want) {
    if (want.slice < 50)
      changed(source, [](auto, auto&) {})(socket, peer, want);
  }};
  const auto alive = open();
  alive->offer(1, source);
  const auto target = open();
  const auto cargo = sent.expected(10'000);
  auto broken = pull(*target, dying.endpoint, cargo);
  EXPECT_EQ(code(broken), errc::timed_out);
  EXPECT_EQ(cargo->bytes_here(), 500'000u);
  auto end = pull(*target, alive->endpoint(), cargo);
  EXPECT_EQ(code(end), errc::ok);
  EXPECT_EQ(alive->counts().slices_out, 50u);
  expect_all_equal(*cargo, sent);
}

TEST(weight_exchange, pulls_only_the_tensors_that_are_wanted) {
  const sample_tensors sent{{4'000, 8'000, 4'000}};
  const auto source = open();
  source->offer(1, sent.cargo(1'000));
  const auto changed_only = [](const tensor_info& t) { return t.name == "t01"; };
  const auto middle = open();
  const auto cargo = sent.expected(1'000, changed_only);
  auto end = pull(*middle, source->endpoint(), cargo);
  EXPECT_EQ(code(end), errc::ok);
  EXPECT_EQ(middle->counts().bytes_in, 8'000u);
  // One that lacks more hears so from the middle one, and gets it from the source.
  const auto stale = open();
  const auto whole = sent.expected(1'000);
  auto refused = pull(*stale, middle->endpoint(), whole);
  EXPECT_EQ(code(refused), errc::stale_epoch);
  auto resumed = pull(*stale, source->endpoint(), whole);
  EXPECT_EQ(code(resumed), errc::ok);
  expect_all_equal(*whole, sent);
  const auto nothing = sent.expected(1'000, [](const auto&) { return false; });
  auto at_once = pull(*stale, source->endpoint(), nothing, {}, 2);
  EXPECT_EQ(code(at_once), errc::ok) << "nothing is wanted";
}

TEST(weight_exchange, fetches_a_corrupted_tensor_again_and_gives_up_the_second_time) {
  const sample_tensors sent{{8'000, 8'000}};
  std::atomic<int> corruptions{0};
  std::atomic<int> allowed{1};
  const raw_holder liar{changed(sent.cargo(1'000), [&](std::uint32_t slice, auto& bytes) {
    if (slice == 10 && corruptions < allowed) {
      ++corruptions;
      bytes[17] ^= std::byte{4};
    }
  })};
  const auto target = open();
  const auto cargo = sent.expected(1'000);
  auto end = pull(*target, liar.endpoint, cargo);
  EXPECT_EQ(code(end), errc::ok);
  expect_all_equal(*cargo, sent);
  EXPECT_EQ(target->counts().tensors_refetched, 1u);
  EXPECT_EQ(target->counts().slices_in, 16u + 8u) << "the other tensor was not fetched again";
  allowed = 100;
  auto second = pull(*target, liar.endpoint, sent.expected(1'000), {}, 2);
  ASSERT_EQ(second.wait_for(20s), std::future_status::ready);
  const auto how = second.get();
  ASSERT_FALSE(how);
  EXPECT_EQ(how.error().code, errc::frame_malformed);
  EXPECT_NE(how.error().detail.find("tensor t01"), std::string::npos) << how.error().detail;
}

TEST(weight_exchange, gives_up_on_slices_of_another_size_and_ignores_unasked_ones) {
  const sample_tensors sent{{8'000}};
  const raw_holder shortener{
    changed(sent.cargo(1'000), [](auto, auto& bytes) { bytes.pop_back(); })};
  const auto target = open();
  auto end = pull(*target, shortener.endpoint, sent.expected(1'000));
  EXPECT_EQ(code(end), errc::frame_malformed);
  const raw_holder repeater{[&](auto& socket, const auto& peer, const auto& want) {
    const auto honest = changed(sent.cargo(1'000), [](auto, auto&) {});
    honest(socket, peer, want);
    honest(socket, peer, want);
    auto other = want;
    other.slice = 70'000;
    other.kind = weight_message::slice;
    raw_holder::send(socket, peer, other, {});
  }};
  const auto cargo = sent.expected(1'000);
  auto good = pull(*target, repeater.endpoint, cargo, {}, 2);
  EXPECT_EQ(code(good), errc::ok);
  expect_all_equal(*cargo, sent);
  EXPECT_GE(target->counts().frames_rejected, 8u);
}

TEST(weight_exchange, tells_of_a_silent_upstream_within_the_timeout) {
  const sample_tensors sent{{8'000}};
  const raw_holder silent{[](auto&, const auto&, const auto&) {}};
  const auto target = open(quick(300ms));
  for (const auto& endpoint : {silent.endpoint, std::string("tcp://127.0.0.1:1")}) {
    const auto started = std::chrono::steady_clock::now();
    auto end = pull(*target, endpoint, sent.expected(1'000));
    EXPECT_EQ(code(end), errc::timed_out) << endpoint;
    const auto took = std::chrono::steady_clock::now() - started;
    EXPECT_GE(took, 300ms);
    EXPECT_LT(took, 3s) << "300 ms and what a busy machine adds";
  }
  auto nowhere = pull(*target, "nonsense", sent.expected(1'000));
  EXPECT_EQ(code(nowhere), errc::peer_lost);
}

TEST(weight_exchange, waits_for_an_upstream_that_waits_itself) {
  const sample_tensors sent{{8'000}};
  const raw_holder silent{[](auto&, const auto&, const auto&) {}};
  auto options = quick(20s);
  options.wait_every = 600ms;
  const auto middle = open(options);
  auto starved = pull(*middle, silent.endpoint, sent.expected(1'000));
  const auto target = open(quick(300ms));
  const auto cargo = sent.expected(1'000);
  auto end = pull(*target, middle->endpoint(), cargo);
  // `middle` says every 600 ms that it lives: too seldom for 300 ms of patience, enough for 2 s.
  EXPECT_EQ(code(end), errc::timed_out);
  const auto patient = open(quick(2s));
  auto later = pull(*patient, middle->endpoint(), cargo);
  EXPECT_EQ(later.wait_for(2500ms), std::future_status::timeout);
  const auto source = open();
  source->offer(1, sent.cargo(1'000));
  middle->redirect(1, source->endpoint());
  EXPECT_EQ(code(starved), errc::ok);
  EXPECT_EQ(code(later), errc::ok);
  expect_all_equal(*cargo, sent);
}

TEST(weight_exchange, asks_again_while_the_upstream_does_not_know_the_update_yet) {
  const sample_tensors sent{{100'000}};
  const auto source = open();
  const auto target = open();
  const auto cargo = sent.expected(1'000);
  auto end = pull(*target, source->endpoint(), cargo);
  EXPECT_EQ(end.wait_for(100ms), std::future_status::timeout);
  source->offer(1, sent.cargo(1'000));
  EXPECT_EQ(code(end), errc::ok);
  expect_all_equal(*cargo, sent);
  auto never = pull(*target, source->endpoint(), sent.expected(1'000), {}, 2);
  EXPECT_EQ(code(never), errc::stale_epoch);
}

TEST(weight_exchange, refuses_another_content_under_the_same_number) {
  const sample_tensors one{{8'000}, 1};
  const sample_tensors two{{8'000}, 2};
  const auto source = open();
  source->offer(1, one.cargo(1'000));
  const auto target = open();
  auto other = pull(*target, source->endpoint(), two.expected(1'000));
  EXPECT_EQ(code(other), errc::frame_malformed);
  auto cut = pull(*target, source->endpoint(), one.expected(2'000));
  EXPECT_EQ(code(cut), errc::frame_malformed);
  EXPECT_EQ(target->counts().slices_in, 0u) << "before anything is sent";
}

TEST(weight_exchange, tells_who_waits_that_an_update_was_withdrawn) {
  const sample_tensors sent{{8'000}};
  const raw_holder silent{[](auto&, const auto&, const auto&) {}};
  const auto middle = open(quick(10s));
  auto starved = pull(*middle, silent.endpoint, sent.expected(1'000));
  const auto target = open(quick(10s));
  auto end = pull(*target, middle->endpoint(), sent.expected(1'000));
  EXPECT_EQ(end.wait_for(100ms), std::future_status::timeout);
  middle->withdraw(1);
  EXPECT_EQ(code(end), errc::cancelled);
  auto late = pull(*target, middle->endpoint(), sent.expected(1'000));
  EXPECT_EQ(code(late), errc::cancelled) << "it is not merely unknown";
  middle->cancel(1);
  EXPECT_EQ(code(starved), errc::cancelled);
  middle->offer(1, sent.cargo(1'000));
  auto again = pull(*target, middle->endpoint(), sent.expected(1'000));
  EXPECT_EQ(code(again), errc::ok) << "offered again";
}

TEST(weight_exchange, pulls_one_cargo_of_an_update_and_so_many_updates_at_a_time) {
  const sample_tensors sent{{8'000}};
  const raw_holder silent{[](auto&, const auto&, const auto&) {}};
  auto options = quick(10s);
  options.pulls_max = 2;
  std::vector<ending> ends;
  {
    const auto target = open(options);
    for (const std::uint64_t update : {1u, 1u, 2u, 3u})
      ends.push_back(pull(*target, silent.endpoint, sent.expected(1'000), {}, update));
    EXPECT_EQ(code(ends[1]), errc::batch_conflict);
    EXPECT_EQ(code(ends[3]), errc::queue_full);
    target->redirect(77, silent.endpoint); // nothing is pulled under this number
    target->cancel(77);
    target->withdraw(77);
  }
  EXPECT_EQ(code(ends[0]), errc::cancelled) << "the exchange stops";
  EXPECT_EQ(code(ends[2]), errc::cancelled);
}

TEST(weight_exchange, parks_so_many_requests_of_a_peer) {
  const sample_tensors sent{{100'000}};
  const raw_holder silent{[](auto&, const auto&, const auto&) {}};
  auto options = quick(10s);
  options.parked_per_peer_max = 5;
  const auto middle = open(options);
  const auto cargo = sent.expected(1'000);
  auto starved = pull(*middle, silent.endpoint, cargo);
  zmq::context_t context;
  zmq::socket_t greedy{context, zmq::socket_type::dealer};
  greedy.set(zmq::sockopt::linger, 0);
  greedy.set(zmq::sockopt::rcvtimeo, 5'000);
  greedy.connect(middle->endpoint());
  ASSERT_TRUE(soon([&] { // the middle one knows the update
    greedy.send(zmq::buffer(encode({.kind = weight_message::want,
                                    .update = 1,
                                    .slice = 100'000,
                                    .slice_bytes = 1'000,
                                    .manifest = cargo->manifest()})),
                zmq::send_flags::none);
    zmq::message_t head;
    zmq::message_t why;
    return greedy.recv(head) && greedy.recv(why)
           && decode_weight_frame({head.data<std::byte>(), head.size()})->code
                == errc::frame_malformed;
  }));
  for (std::uint32_t slice = 0; slice < 8; ++slice)
    greedy.send(zmq::buffer(encode({.kind = weight_message::want,
                                    .update = 1,
                                    .slice = slice,
                                    .slice_bytes = 1'000,
                                    .manifest = cargo->manifest()})),
                zmq::send_flags::none);
  for (std::uint32_t slice = 5; slice < 8; ++slice) {
    zmq::message_t head;
    zmq::message_t why;
    ASSERT_TRUE(greedy.recv(head) && greedy.recv(why));
    const auto frame = decode_weight_frame({head.data<std::byte>(), head.size()});
    ASSERT_TRUE(frame);
    EXPECT_EQ(frame->kind, weight_message::refused);
    EXPECT_EQ(frame->code, errc::queue_full);
    EXPECT_EQ(frame->slice, slice);
  }
}

TEST(weight_exchange, is_not_moved_by_garbage) {
  const sample_tensors sent{{2'000'000}};
  const auto source_cargo = sent.cargo(10'000);
  const auto source = open(quick(5s));
  source->offer(1, source_cargo);
  zmq::context_t context;
  zmq::socket_t stranger{context, zmq::socket_type::dealer};
  stranger.set(zmq::sockopt::linger, 0);
  stranger.connect(source->endpoint());
  prng rng{1};
  const auto random_bytes = [&rng](std::size_t size) {
    std::vector<std::byte> bytes(size);
    for (auto& b : bytes)
      b = static_cast<std::byte>(rng.below(256));
    return bytes;
  };
  const auto target = open(quick(5s));
  const auto cargo = sent.expected(10'000);
  ending end;
  for (int i = 0; i < 1'000; ++i) {
    if (i == 500)
      end = pull(*target, source->endpoint(), cargo);
    auto bytes = random_bytes(rng.below(80));
    if (rng.chance(70)) { // a sound frame with some bytes of it random
      weight_frame want{.kind = weight_message::want,
                        .update = 1,
                        .slice = 3,
                        .slice_bytes = 10'000,
                        .manifest = cargo->manifest()};
      const auto good = encode(want);
      bytes.assign(good.begin(), good.end());
      for (auto n = rng.below(4); n > 0; --n)
        bytes[rng.below(bytes.size())] = static_cast<std::byte>(rng.below(256));
    }
    const bool more = rng.chance(20);
    stranger.send(zmq::buffer(bytes), more ? zmq::send_flags::sndmore : zmq::send_flags::none);
    if (more)
      stranger.send(zmq::buffer(random_bytes(rng.below(80))), zmq::send_flags::none);
  }
  EXPECT_EQ(code(end), errc::ok);
  expect_all_equal(*cargo, sent);
  EXPECT_TRUE(soon([&] { return source->counts().frames_rejected > 300; }))
    << source->counts().frames_rejected;

  // The same from an upstream: whatever it says, the pull ends.
  const raw_holder babbler{[&](auto& socket, const auto& peer, const auto& want) {
    for (int i = 0; i < 40; ++i) {
      auto frame = want;
      frame.kind = static_cast<weight_message>(rng.below(6));
      if (frame.kind == weight_message::refused)
        frame.kind = weight_message::wait;
      frame.slice = static_cast<std::uint32_t>(rng.below(300));
      frame.attempt += rng.below(2);
      auto bytes = encode(frame);
      if (rng.chance(50))
        bytes[rng.below(bytes.size())] = static_cast<std::byte>(rng.below(256));
      socket.send(zmq::buffer(peer), zmq::send_flags::sndmore);
      socket.send(zmq::buffer(bytes),
                  rng.chance(50) ? zmq::send_flags::sndmore : zmq::send_flags::none);
      socket.send(zmq::message_t{}, zmq::send_flags::none);
    }
  }};
  const auto victim = open(quick(500ms));
  auto over = pull(*victim, babbler.endpoint, sent.expected(10'000));
  const auto how = code(over);
  EXPECT_NE(how, errc::ok);
  EXPECT_NE(how, errc::io_failed) << "it did not end";
}

} // namespace
} // namespace rollcast
