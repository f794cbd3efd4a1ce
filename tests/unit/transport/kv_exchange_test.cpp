// Goal: KV images arrive whole or not at all, every transfer ends within its timeout, and neither
// strangers nor dead peers block the others.
// Method: two exchanges on loopback, each with its own thread; holders that lie, keep silent,
// refuse or die; a raw socket that sends garbage.

#include "cluster/transport/kv_exchange.hpp"
#include "cluster/transport/kv_frame.hpp"
#include "cluster/transport/tcp_probe.hpp"

#include <gtest/gtest.h>
#include <zmq.hpp>

#include <future>
#include <mutex>

namespace rollcast {
namespace {

using namespace std::chrono_literals;

kv_exchange_options quick(std::chrono::milliseconds idle = 300ms) {
  kv_exchange_options options;
  options.part_bytes = 1'000;
  options.idle_ms_max = idle;
  return options;
}

const std::vector<token_id> tokens{5, 6, 7, 8, 9};

/// An image of the first four of `tokens`, with a manifest that is true.
std::shared_ptr<kv_image> sound_image(std::size_t bytes, std::uint64_t response = 1) {
  auto image = std::make_shared<kv_image>();
  for (std::size_t i = 0; i < bytes; ++i)
    image->bytes.push_back(static_cast<std::byte>((i * 131 + response) >> 3));
  image->manifest = {{response},
                     4,
                     bytes,
                     hash_of(std::span<const token_id>{tokens}.first(4)),
                     hash_bytes(image->bytes)};
  return image;
}

std::unique_ptr<kv_exchange> open(
  kv_exchange_options options = quick(),
  kv_exchange::serve_function serve = [](const auto&, const auto&) {}) {
  auto opened = kv_exchange::open(std::move(options), std::move(serve));
  EXPECT_TRUE(opened) << opened.error().detail;
  return std::move(*opened);
}

/// A holder that answers every request with `image`.
struct holder {
  explicit holder(result<std::shared_ptr<const kv_image>> image)
    : exchange(open(quick(), [this, image](const kv_request&, const kv_ticket& ticket) {
        const std::scoped_lock lock{ready};
        exchange->answer(ticket, image);
      })) {}
  std::mutex ready; ///< Nobody asks before `exchange` is set; this tells the sanitizer so.
  std::unique_ptr<kv_exchange> exchange;
};

std::future<result<kv_image>> pull(kv_exchange& into, const std::string& from,
                                   std::uint64_t response = 1, std::uint64_t* id = nullptr) {
  auto promise = std::make_shared<std::promise<result<kv_image>>>();
  auto future = promise->get_future();
  const auto pulled = into.pull(from, {{1}, {response}}, tokens, [promise](result<kv_image> image) {
    promise->set_value(std::move(image));
  });
  if (id != nullptr)
    *id = pulled;
  return future;
}

errc code(std::future<result<kv_image>> f) {
  if (f.wait_for(5s) != std::future_status::ready)
    return errc::io_failed; // never what these tests expect
  const auto got = f.get();
  return got ? errc::ok : got.error().code;
}

TEST(kv_exchange, moves_an_image_of_any_number_of_parts) {
  for (const std::size_t bytes : {1u, 999u, 1'000u, 1'001u, 57'123u}) {
    const auto image = sound_image(bytes);
    const holder source{image};
    const auto target = open();
    const auto got = pull(*target, source.exchange->endpoint()).get();
    ASSERT_TRUE(got) << got.error().detail;
    EXPECT_EQ(got->bytes, image->bytes);
    EXPECT_EQ(got->manifest.tokens, 4u);
    EXPECT_EQ(target->counts().bytes_in, bytes);
  }
}

TEST(kv_exchange, moves_many_images_at_once) {
  const auto source = std::make_shared<std::unique_ptr<kv_exchange>>();
  *source = open(quick(5s), [source](const kv_request& what, const kv_ticket& ticket) {
    (*source)->answer(ticket, sound_image(20'000, what.response.value));
  });
  const auto target = open(quick(5s));
  std::vector<std::future<result<kv_image>>> pulls;
  for (std::uint64_t response = 1; response <= 40; ++response)
    pulls.push_back(pull(*target, (*source)->endpoint(), response));
  for (std::uint64_t response = 1; response <= 40; ++response) {
    const auto got = pulls[response - 1].get();
    ASSERT_TRUE(got) << got.error().detail;
    EXPECT_EQ(got->bytes, sound_image(20'000, response)->bytes) << response;
  }
  source->reset();
}

TEST(kv_exchange, holds_no_more_image_bytes_than_allowed_on_either_side) {
  // Each image counts 20 000 bytes, so two fit. The holder's answers and the puller's images are
  // kept here, so that what is alive can be counted.
  std::mutex mutex;
  std::vector<kv_ticket> asked;
  auto options = quick();
  options.group_bytes = 5'000;
  options.group_tokens = 1;
  auto holding = options;
  holding.images_bytes_max = 50'000;
  const auto source = open(holding, [&](const kv_request&, const kv_ticket& ticket) {
    const std::scoped_lock lock{mutex};
    asked.push_back(ticket);
  });
  const auto count_asked = [&] {
    const std::scoped_lock lock{mutex};
    return asked.size();
  };
  const auto target = open(options);
  std::vector<std::future<result<kv_image>>> pulls;
  for (std::uint64_t response = 1; response <= 7; ++response)
    pulls.push_back(pull(*target, source->endpoint(), response));
  std::this_thread::sleep_for(100ms);
  ASSERT_EQ(count_asked(), 2u) << "25 000 each: of five tokens";
  for (std::uint64_t response = 1; response <= 7; ++response) {
    while (count_asked() < response)
      std::this_thread::sleep_for(1ms);
    std::this_thread::sleep_for(60ms); // the last waits longer than the silence that kills
    EXPECT_LE(count_asked(), response + 1) << "one more than those that have ended";
    source->answer(asked[response - 1], sound_image(20'000, response));
    const auto got = pulls[response - 1].get();
    ASSERT_TRUE(got) << got.error().detail;
  }

  options.images_bytes_max = 50'000;
  const auto small = open(options);
  const holder ample{sound_image(20'000)};
  std::vector<result<kv_image>> kept;
  auto one = pull(*small, ample.exchange->endpoint());
  kept.push_back(one.get());
  auto two = pull(*small, ample.exchange->endpoint());
  kept.push_back(two.get());
  auto three = pull(*small, ample.exchange->endpoint());
  EXPECT_EQ(three.wait_for(400ms), std::future_status::timeout) << "two images are alive";
  kept.pop_back();
  EXPECT_EQ(code(std::move(three)), errc::ok);
}

TEST(kv_exchange, refuses_an_image_whose_size_is_not_that_of_its_tokens) {
  const holder source{sound_image(20'001)};
  auto options = quick();
  options.group_bytes = 5'000;
  const auto target = open(options);
  EXPECT_EQ(code(pull(*target, source.exchange->endpoint())), errc::frame_malformed);
  EXPECT_EQ(target->counts().bytes_in, 0u);
}

TEST(kv_exchange, refuses_an_image_with_a_flipped_bit) {
  const auto image = sound_image(5'000);
  image->bytes[4'321] ^= std::byte{1};
  const holder source{image};
  const auto target = open();
  EXPECT_EQ(code(pull(*target, source.exchange->endpoint())), errc::frame_malformed);
  EXPECT_EQ(target->counts().pulls_failed, 1u);
}

TEST(kv_exchange, refuses_kv_of_other_tokens_before_fetching_any) {
  const auto image = sound_image(5'000);
  image->manifest.prefix.low ^= 1;
  const holder source{image};
  const auto target = open();
  EXPECT_EQ(code(pull(*target, source.exchange->endpoint())), errc::frame_malformed);
  EXPECT_EQ(target->counts().bytes_in, 0u);
}

TEST(kv_exchange, refuses_a_manifest_of_more_tokens_than_there_are) {
  const auto image = sound_image(5'000);
  image->manifest.tokens = 6;
  const holder source{image};
  const auto target = open();
  EXPECT_EQ(code(pull(*target, source.exchange->endpoint())), errc::frame_malformed);
}

TEST(kv_exchange, refuses_an_image_over_the_limit) {
  const holder source{sound_image(5'000)};
  auto options = quick();
  options.image_bytes_max = 4'999;
  const auto target = open(options);
  EXPECT_EQ(code(pull(*target, source.exchange->endpoint())), errc::frame_too_large);
}

TEST(kv_exchange, tells_why_the_holder_refused) {
  const holder source{fail(errc::out_of_kv_blocks, "no KV of response 1 is parked here")};
  const auto target = open();
  const auto got = pull(*target, source.exchange->endpoint()).get();
  ASSERT_FALSE(got);
  EXPECT_EQ(got.error().code, errc::out_of_kv_blocks);
  EXPECT_NE(got.error().detail.find("is parked here"), std::string::npos) << got.error().detail;
}

TEST(kv_exchange, gives_up_on_a_holder_that_keeps_silent) {
  const auto silent = open();
  const auto target = open();
  const auto begin = std::chrono::steady_clock::now();
  EXPECT_EQ(code(pull(*target, silent->endpoint())), errc::timed_out);
  const auto took = std::chrono::steady_clock::now() - begin;
  EXPECT_GE(took, 300ms);
  EXPECT_LT(took, 2s);
}

TEST(kv_exchange, gives_up_at_once_on_all_that_is_wanted_from_a_silent_holder) {
  const auto silent = open();
  const holder source{sound_image(5'000)};
  auto options = quick();
  options.pulls_active = 2;
  const auto target = open(options);
  const auto begin = std::chrono::steady_clock::now();
  std::vector<std::future<result<kv_image>>> doomed;
  for (std::uint64_t response = 1; response <= 10; ++response)
    doomed.push_back(pull(*target, silent->endpoint(), response));
  auto behind = pull(*target, source.exchange->endpoint());
  for (auto& d : doomed)
    EXPECT_EQ(code(std::move(d)), errc::timed_out);
  EXPECT_EQ(code(std::move(behind)), errc::ok);
  EXPECT_LT(std::chrono::steady_clock::now() - begin, 900ms) << "two rounds would take 600 ms more";
}

TEST(kv_exchange, asks_nothing_of_a_silent_holder_for_a_while) {
  const auto silent = open();
  auto options = quick();
  options.shun_ms = 1s;
  const auto target = open(options);
  EXPECT_EQ(code(pull(*target, silent->endpoint())), errc::timed_out);
  const auto begin = std::chrono::steady_clock::now();
  for (std::uint64_t response = 2; response <= 20; ++response)
    EXPECT_EQ(code(pull(*target, silent->endpoint(), response)), errc::timed_out);
  EXPECT_LT(std::chrono::steady_clock::now() - begin, 250ms) << "each would wait 300 ms in vain";
  std::this_thread::sleep_until(begin + 1s);
  const auto later = std::chrono::steady_clock::now();
  EXPECT_EQ(code(pull(*target, silent->endpoint())), errc::timed_out);
  EXPECT_GE(std::chrono::steady_clock::now() - later, 300ms) << "asked again";
}

TEST(kv_exchange, gives_up_on_a_worker_that_is_not_there) {
  const auto target = open();
  EXPECT_EQ(code(pull(*target, "tcp://127.0.0.1:1")), errc::timed_out);
  EXPECT_EQ(code(pull(*target, "nonsense")), errc::peer_lost);
}

TEST(kv_exchange, gives_up_on_a_holder_that_dies_in_the_middle_and_serves_the_next) {
  zmq::context_t context;
  zmq::socket_t dying{context, zmq::socket_type::router};
  dying.set(zmq::sockopt::linger, 0);
  dying.bind("tcp://127.0.0.1:*");
  const auto endpoint = dying.get(zmq::sockopt::last_endpoint);
  const auto target = open();
  auto doomed = pull(*target, endpoint);
  zmq::message_t peer;
  zmq::message_t request;
  ASSERT_TRUE(dying.recv(peer));
  ASSERT_TRUE(dying.recv(request));
  const auto asked = decode_kv_frame({request.data<std::byte>(), request.size()});
  ASSERT_TRUE(asked);
  kv_frame offer{.kind = kv_message::manifest, .pull = asked->pull, .tokens = 4};
  offer.response = {1};
  offer.bytes = 5'000;
  offer.part_bytes = 1'000;
  offer.prefix = hash_of(std::span<const token_id>{tokens}.first(4));
  dying.send(peer, zmq::send_flags::sndmore);
  dying.send(zmq::buffer(encode(offer)));
  dying.close();
  EXPECT_EQ(code(std::move(doomed)), errc::timed_out);
  const holder source{sound_image(5'000)};
  EXPECT_EQ(code(pull(*target, source.exchange->endpoint())), errc::ok);
}

TEST(kv_exchange, ends_a_pull_that_is_cancelled_and_all_that_live_when_it_stops) {
  const auto silent = open(quick(10s));
  auto target = open(quick(10s));
  std::uint64_t id = 0;
  auto cancelled = pull(*target, silent->endpoint(), 1, &id);
  target->cancel(id);
  EXPECT_EQ(code(std::move(cancelled)), errc::cancelled);
  auto orphan = pull(*target, silent->endpoint());
  target.reset();
  EXPECT_EQ(code(std::move(orphan)), errc::cancelled);
}

TEST(kv_exchange, bounds_the_pulls_under_way) {
  const auto silent = open();
  auto options = quick();
  options.pulls_max = 2;
  const auto target = open(options);
  auto first = pull(*target, silent->endpoint());
  auto second = pull(*target, silent->endpoint());
  EXPECT_EQ(code(pull(*target, silent->endpoint())), errc::queue_full);
  EXPECT_EQ(code(std::move(first)), errc::timed_out);
  EXPECT_EQ(code(std::move(second)), errc::timed_out);
}

TEST(kv_exchange, counts_garbage_and_goes_on) {
  const holder source{sound_image(3'000)};
  zmq::context_t context;
  zmq::socket_t stranger{context, zmq::socket_type::dealer};
  stranger.set(zmq::sockopt::linger, 200);
  stranger.connect(source.exchange->endpoint());
  for (int i = 0; i < 50; ++i)
    stranger.send(zmq::buffer(std::string(static_cast<std::size_t>(i * 5), 'x')),
                  i % 5 == 0 ? zmq::send_flags::sndmore : zmq::send_flags::none);
  kv_frame want{.kind = kv_message::want, .pull = 3, .part = 1u << 31}; // an offer never made
  stranger.send(zmq::buffer(encode(want)));
  const auto target = open();
  EXPECT_EQ(code(pull(*target, source.exchange->endpoint())), errc::ok);
  for (int i = 0; i < 100 && source.exchange->counts().frames_rejected < 40; ++i)
    std::this_thread::sleep_for(10ms);
  EXPECT_GE(source.exchange->counts().frames_rejected, 40u);
}

TEST(kv_exchange, says_which_endpoint_is_in_use) {
  const auto first = open();
  auto options = quick();
  options.bind = first->endpoint();
  const auto second = kv_exchange::open(options, [](const auto&, const auto&) {});
  ASSERT_FALSE(second);
  EXPECT_EQ(second.error().code, errc::address_in_use);
  EXPECT_NE(second.error().detail.find(first->endpoint()), std::string::npos);
}

TEST(tcp_probe, tells_a_listener_from_nobody) {
  const auto listener = open();
  const auto endpoint = listener->endpoint();
  const auto port = static_cast<std::uint16_t>(std::stoi(endpoint.substr(endpoint.rfind(':') + 1)));
  EXPECT_TRUE(probe_tcp("127.0.0.1", port, 1s));
  const auto nobody = probe_tcp("127.0.0.1", 1, 1s);
  ASSERT_FALSE(nobody);
  EXPECT_EQ(nobody.error().code, errc::peer_lost);
  EXPECT_FALSE(probe_tcp("no-such-host.invalid", 1, 1s));
}

} // namespace
} // namespace rollcast
